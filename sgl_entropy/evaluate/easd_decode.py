"""EASD decoding in plain torch, one prompt at a time: the reference for engines.

Plain speculation never changes the target's answer, so ``walk`` can generate it first. EASD changes
it: every token depends on which positions fired before. So this loop decodes: the drafter proposes
a chain, the target runs over it, ``verify_chain`` decides, and both continue after the emitted
tokens. Both keep their caches; a rejected token's rows are overwritten in the target's and never
enter the drafter's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.drafter.model import DraftCache, Drafter
from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.verify.easd import overlap, uncertainty, verify_chain
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord


@dataclass(frozen=True)
class EasdAnswer:
    """An answer and its cycles.

    Attributes:
        tokens: without the prompt; ends with the target's end token unless it was cut.
        cycles: in order. They emitted all tokens but the first, which came from the prefill.
    """

    tokens: list[int]
    cycles: list[CycleRecord]


def decode(
    target: PlainTarget,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    rules: Sequence[EasdRule | None],
    depth: int,
    max_new_tokens: int,
    tap_layers: Sequence[int] | None = None,
    top_n: int = EasdRule.top_n,
    report: Callable[[str], None] | None = None,
) -> list[EasdAnswer]:
    """Greedy answers with chains of ``depth`` drafts.

    Args:
        prompts: token ids of each prompt.
        rules: of each prompt; None = ordinary verification.
        tap_layers: the drafter's taps; None = ``config.target_layer_ids``.
        top_n: N of the overlaps that are recorded where a prompt has no rule.
        report: called with a progress line after each prompt.

    Raises:
        ValueError: an empty prompt, or more positions needed than a model has.
    """
    layers = drafter.config.target_layer_ids if tap_layers is None else tuple(tap_layers)
    if layers is None:
        raise ValueError("the drafter's config names no target_layer_ids: pass tap_layers")
    # The last chain may reach past the last token.
    longest = max(map(len, prompts), default=1) + max_new_tokens + depth
    most = min(target.max_positions, drafter.config.max_position_embeddings)
    if not all(prompts) or longest > most:
        raise ValueError(
            f"expected prompts of 1 to {most - max_new_tokens - depth} tokens: {max_new_tokens} "
            f"new tokens and a chain of {depth} have to fit into {most} positions"
        )
    answers = []
    for prompt, rule in zip(prompts, rules, strict=True):
        stats = EasdRule(top_n=top_n) if rule is None else rule
        one = _Decoding(target, drafter, layers, rule, stats)
        answers.append(one.answer(list(prompt), depth, max_new_tokens))
        if report is not None:
            report(f"{len(answers)} of {len(prompts)} prompts")
    return answers


class _Decoding:
    """One prompt's caches and its verified tokens.

    Args:
        stats: whose ``top_n`` and ``normalised`` shape the drafter's uncertainty.
    """

    def __init__(
        self,
        target: PlainTarget,
        drafter: Drafter,
        layers: tuple[int, ...],
        rule: EasdRule | None,
        stats: EasdRule,
    ) -> None:
        self.target, self.drafter, self.layers = target, drafter, layers
        self.rule, self.stats = rule, stats
        self.target_cache, self.draft_cache = target.new_cache(1), DraftCache()
        self.tokens: list[int] = []

    @torch.inference_mode()
    def answer(self, prompt: list[int], depth: int, max_new_tokens: int) -> EasdAnswer:
        logits, taps = self._run_target(prompt, at=0)
        emitted = [int(logits[-1].argmax())]
        self.tokens = [*prompt, *emitted]
        out = self._run_drafter(self.tokens[1:], taps, at=0)
        cycles = []
        while (left := len(prompt) + max_new_tokens - len(self.tokens)) > 0:
            if emitted[-1] in self.target.eos_ids:
                break
            drafted, draft_logits = self._draft(out, depth)
            root = len(self.tokens) - 1
            logits, taps = self._run_target([self.tokens[-1], *drafted], at=root)
            cycle, emitted = self._verify(logits, drafted, draft_logits, left)
            cycles.append(cycle)
            self.tokens += emitted
            out = self._run_drafter(emitted, taps[: len(emitted)], at=root)
        return EasdAnswer(self.tokens[len(prompt) :], cycles)

    def _run_target(self, tokens: list[int], at: int) -> tuple[Tensor, Tensor]:
        """Raw logits [n, vocab] and taps side by side [n, taps * d] of the rows from ``at``."""
        device = self.target.device
        ids, start = torch.tensor([tokens], device=device), torch.tensor([at], device=device)
        out = self.target.forward(ids, start, self.target_cache, tap_layers=self.layers)
        return self.target.logits(out.final[0]), torch.cat(out.taps, dim=-1)[0]

    def _run_drafter(self, tokens: list[int], taps: Tensor, at: int) -> Tensor:
        """Verified rows from ``at``, each token with the taps before it; out [d] of the last."""
        features = self.drafter.fuse_taps(taps.to(self.drafter.fc.weight.dtype))
        return self._rows(tokens, features, at, self.draft_cache)

    def _rows(self, tokens: list[int], features: Tensor, at: int, cache: DraftCache) -> Tensor:
        device = self.target.device
        ids = torch.tensor([tokens], device=device)
        embeds = F.embedding(ids, self.target.embedding).to(features.dtype)
        positions = torch.arange(at, at + len(tokens), device=device)[None]
        out: Tensor = self.drafter(embeds, features[None], positions, cache)
        return out[0, -1]

    def _draft(self, out: Tensor, depth: int) -> tuple[list[int], Tensor]:
        """A greedy chain after the last verified row: target ids, logits [depth, draft vocab]."""
        cache = self.draft_cache.copy()
        tokens: list[int] = []
        logits: list[Tensor] = []
        for step in range(depth):
            if step:
                row = len(self.tokens) - 2 + step
                out = self._rows(tokens[-1:], out[None], row, cache)
            logits.append(self.drafter.logits(out))
            tokens.append(int(self.drafter.target_ids(logits[-1].argmax())))
        return tokens, torch.stack(logits)

    def _verify(
        self, raw: Tensor, drafted: list[int], draft_logits: Tensor, left: int
    ) -> tuple[CycleRecord, list[int]]:
        """The cycle and what it emits: at most ``left`` tokens, and none after an end token."""
        # The rule's plain form: a few rows, wherever the models are.
        raw, draft_logits, d2t = raw.cpu(), draft_logits.cpu(), self.drafter.d2t.cpu()
        ids = torch.tensor(drafted)
        draft = uncertainty(draft_logits, self.stats, d2t)
        draft_law = torch.softmax(draft_logits.float(), dim=-1)
        wide = torch.zeros(len(drafted), raw.shape[-1])
        wide[:, torch.arange(len(d2t)) + d2t] = draft_law
        law = torch.softmax(raw.float(), dim=-1)
        walk = verify_chain(raw, law, ids, draft, self.rule, draft_probs=wide)
        emitted = walk.tokens[:left]
        ends = [i for i, token in enumerate(emitted) if token in self.target.eos_ids]
        emitted = emitted[: ends[0] + 1] if ends else emitted
        # Positions after the end do not count.
        kept = len(emitted)
        at = torch.arange(len(drafted))
        cycle = CycleRecord(
            draft_entropy=_floats(shannon_entropy(draft_logits)),
            draft_prob=_floats(wide[at, ids]),
            overlap=_floats(overlap(uncertainty(raw[:-1], self.stats).top_ids, draft.top_ids)),
            target_prob=_floats(law[at, ids]),
            target_entropy=_floats(shannon_entropy(raw)),
            accepted=min(walk.accepted, kept),
            emitted=kept,
            checked=min(walk.checked, kept),
            fired=walk.fired if walk.fired is not None and walk.fired < kept else None,
        )
        return cycle, emitted


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
