"""tau of a drafter offline: greedy chains against the target's own greedy answers.

Greedy speculation never changes what the target writes, and a chain that starts after a verified
token sees only the target's features of verified tokens and its own drafts. So the answers are
generated once, the chains of all positions are drafted at once (``unroll``), and the verify loop
walks over the answer: it emits a chain's accepted tokens plus one, and continues after them. The
result is what a row-by-row loop counts; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.evaluate.uncertainty import FirstDrafts
from sgl_entropy.target.batches import by_length, padded
from sgl_entropy.target.plain import PlainTarget, TargetOutput


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer with what a drafter taps.

    Attributes:
        tokens: int64 [n], prompt and answer.
        prompt_length: tokens of the prompt.
        features: [n - 1, taps * d_target], of every token but the last.
        entropy: float32 [n - 1 - prompt], the target's at each answer token but the first, nats.

    All on the target's device.
    """

    tokens: Tensor
    prompt_length: int
    features: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class ChainFigures:
    """Counts of a verify loop; figures of several prompts add up.

    Attributes:
        tokens: emitted by draft-verify cycles (the prefill's own first token is not).
        cycles: draft-verify cycles.
        accepted_at: of the cycles whose first i drafts were accepted, those that also accepted
            draft i, summed over cycles; one entry a draft position.
    """

    tokens: int
    cycles: int
    accepted_at: tuple[int, ...]

    def __add__(self, other: ChainFigures) -> ChainFigures:
        at = tuple(a + b for a, b in zip(self.accepted_at, other.accepted_at, strict=True))
        return ChainFigures(self.tokens + other.tokens, self.cycles + other.cycles, at)

    @property
    def tau(self) -> float:
        """Mean tokens a cycle emits: pooled tokens / cycles. 0.0 without a cycle."""
        return self.tokens / self.cycles if self.cycles else 0.0

    @property
    def acceptance(self) -> list[float]:
        """Conditional acceptance by draft position: given that all before it were accepted."""
        reached = [self.cycles, *self.accepted_at[:-1]]
        return [a / r if r else 0.0 for a, r in zip(self.accepted_at, reached, strict=True)]


# Padded rows of a prefill: the memory of its widest activations grows with them.
_MOST_ROWS = 1 << 15


def answered_together(
    lengths: Sequence[int], device: torch.device, most: int | None = None
) -> list[list[int]]:
    """Which prompts are answered at once, ``most`` of them; None = as suits ``device``."""
    return by_length(lengths, most or (16 if device.type == "cpu" else 128), _MOST_ROWS)


@torch.inference_mode()
def greedy_answers(
    target: PlainTarget,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    tap_layers: Sequence[int],
    batch: int | None = None,
    report: Callable[[str], None] | None = None,
) -> list[GreedyAnswer]:
    """The target's greedy answers (an end token included) with the taps' outputs.

    Args:
        prompts: token ids of each prompt.
        batch: the most prompts answered together; None = what suits the target's device.
        report: called with a progress line after each batch.
    """
    answers: dict[int, GreedyAnswer] = {}
    for part in answered_together([len(prompt) for prompt in prompts], target.device, batch):
        ids, lengths = padded(target, [prompts[i] for i in part])
        cache = target.new_cache(len(part))
        out = target.forward(ids, torch.zeros_like(lengths), cache, tap_layers=tap_layers)
        rows = torch.arange(len(part), device=target.device)
        features = [_beside(out)]
        new = [target.logits(out.final[rows, lengths - 1]).argmax(-1)]
        entropy: list[Tensor] = []
        for step in range(max_new_tokens - 1):
            ended = torch.stack([_is_end(tokens, target) for tokens in new]).any(0)
            if bool(ended.all()):
                break
            out = target.forward(new[-1][:, None], lengths + step, cache, tap_layers=tap_layers)
            features.append(_beside(out))
            logits = target.logits(out.final[:, 0])
            entropy.append(shannon_entropy(logits))
            new.append(logits.argmax(-1))
        written = torch.stack(new, dim=1)
        for row, i in enumerate(part):
            ends = _is_end(written[row], target).nonzero()
            count = int(ends[0]) + 1 if len(ends) else written.shape[1]
            seen = features[0][row, : len(prompts[i])]
            answer_rows = [block[row] for block in features[1:count]]
            answers[i] = GreedyAnswer(
                torch.cat([ids[row, : len(prompts[i])], written[row, :count]]),
                len(prompts[i]),
                torch.cat([seen, *answer_rows]),
                torch.stack([step[row] for step in entropy[: count - 1]])
                if count > 1
                else torch.zeros(0, device=target.device),
            )
        if report is not None:
            report(f"answers: {len(answers)} of {len(prompts)}")
    return [answers[i] for i in range(len(prompts))]


@torch.inference_mode()
def draft_answer(
    drafter: Drafter, embedding: Tensor, answer: GreedyAnswer, depth: int
) -> tuple[ChainFigures, FirstDrafts]:
    """What a greedy chain of ``depth`` drafts accepts on one answer, and each cycle's first draft.

    A cycle that would emit more tokens than the answer has left counts what is left.

    Args:
        embedding: the target's, [vocab, d]; all on one device.
    """
    n, start = len(answer.tokens), answer.prompt_length
    chains = n - 1 - start
    if chains < 1:
        empty = torch.zeros(0)
        return ChainFigures(0, 0, (0,) * depth), FirstDrafts(empty, empty, empty.bool())
    dtype = drafter.fc.weight.dtype
    features = drafter.fuse_taps(answer.features[: n - 2].to(dtype))[None]
    embeds = F.embedding(answer.tokens[1 : n - 1], embedding).to(dtype)[None]
    # The chain of row t drafts tokens t + 2, ...: the first one starts at the prompt's last row.
    starts = torch.arange(start - 1, n - 2, device=embedding.device)[None]
    unroll = Unroll(drafter, embeds, features, starts)
    logits = drafter.logits(unroll.out)[0]
    drafted = [drafter.target_ids(logits.argmax(-1))]
    truth = answer.tokens[start + 1 :]
    for _ in range(depth - 1):
        unroll.advance(F.embedding(drafted[-1], embedding).to(dtype)[None])
        drafted.append(drafter.target_ids(drafter.logits(unroll.out)[0].argmax(-1)))
    figures, begun = walk(torch.stack(drafted, dim=1), truth)
    at = torch.tensor(begun, device=truth.device)
    accepted = drafted[0][at] == truth[at]
    return figures, FirstDrafts(answer.entropy[at], shannon_entropy(logits[at]), accepted)


def walk(drafted: Tensor, truth: Tensor) -> tuple[ChainFigures, list[int]]:
    """The verify loop over an answer.

    Args:
        drafted: int64 [m, depth]: row k holds the chain that starts where ``truth[k]`` is due.
        truth: int64 [m]: the answer's tokens but the first.

    Returns:
        Its counts, and the rows at which its cycles began.
    """
    chains, wanted = drafted.tolist(), truth.tolist()
    depth = drafted.shape[1]
    accepted_at = [0] * depth
    at = 0
    begun: list[int] = []
    while at < len(wanted):
        begun.append(at)
        accepted = 0
        while (
            accepted < depth
            and at + accepted < len(wanted)
            and chains[at][accepted] == wanted[at + accepted]
        ):
            accepted_at[accepted] += 1
            accepted += 1
        at += accepted + 1
    return ChainFigures(len(wanted), len(begun), tuple(accepted_at)), begun


def _beside(out: TargetOutput) -> Tensor:
    """The taps side by side, [batch, n, taps * d]; without taps, no columns."""
    return torch.cat(out.taps, dim=-1) if out.taps else out.final[..., :0]


def _is_end(tokens: Tensor, target: PlainTarget) -> Tensor:
    ends = torch.tensor(sorted(target.eos_ids), dtype=torch.long, device=tokens.device)
    return torch.isin(tokens, ends)
