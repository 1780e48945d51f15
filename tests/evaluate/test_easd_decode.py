"""EASD's decoding loop: against plain greedy speculation, and against a loop without any cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.evaluate.easd_decode import EasdAnswer, decode
from sgl_entropy.evaluate.walk import ChainFigures, draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.verify.rule import EasdRule
from tests.drafter.test_model import ARMS, make
from tests.evaluate.test_walk import _teach, random_target

PROMPTS = [[3, 9, 27], [11, 5, 60, 2, 8], [40], [7, 7, 1, 50]]
DEPTH, NEW = 3, 20
# tokens -> the target's logits after them and the taps of all
Rows = dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]
NEVER = EasdRule(target_entropy=math.log(64) + 1, top_n=5)
OFTEN = EasdRule(target_entropy=1.5, draft_entropy=1.5, top_n=8, overlap=0.25)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("end", [False, True])
def test_a_rule_that_cannot_fire_is_plain_speculation(arm: str, end: bool) -> None:
    target, drafter = random_target(), make(arm)
    layers = drafter.config.target_layer_ids
    assert layers is not None
    accepted = 0
    for answer in greedy_answers(target, PROMPTS, NEW, layers):
        _teach(drafter, target, answer)
        prompts = [answer.tokens[: answer.prompt_length].tolist()]
        if end:  # a token in the midst of the answer
            target.config["eos_token_id"] = int(answer.tokens[-NEW // 2])
            answer = greedy_answers(target, prompts, NEW, layers)[0]
        found, plain = decode(target, drafter, prompts * 2, [NEVER, None], DEPTH, NEW)
        assert found.tokens == plain.tokens == answer.tokens[answer.prompt_length :].tolist()
        assert figures(found) == draft_answer(drafter, target.embedding, answer, DEPTH)[0]
        assert all(cycle.fired is None for cycle in found.cycles)
        assert [cycle.checked for cycle in found.cycles] == [c.judged for c in found.cycles]
        assert sum(cycle.checked for cycle in plain.cycles) == 0
        accepted += figures(found).accepted_at[1]
    assert accepted, "no chain was accepted beyond its first draft: this would show little"


def figures(answer: EasdAnswer) -> ChainFigures:
    cycles = answer.cycles
    at = tuple(sum(cycle.accepted > i for cycle in cycles) for i in range(DEPTH))
    return ChainFigures(sum(cycle.emitted for cycle in cycles), len(cycles), at)


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "end"), [*((arm, []) for arm in ARMS), ("edsd", [5])])
def test_it_equals_a_loop_without_caches(arm: str, end: list[int]) -> None:
    """Rules of all kinds side by side; each prompt must follow its own."""
    target, drafter = random_target(), make(arm)
    layers = drafter.config.target_layer_ids
    assert layers is not None
    rules = [
        OFTEN,
        None,
        NEVER,
        replace(OFTEN, accepted_only=True),
        replace(OFTEN, residual=True, overlap=0.0),
        replace(OFTEN, target_entropy=0.4, draft_entropy=0.4, normalised=True),
    ]
    fired = kept = 0
    for answer in greedy_answers(target, PROMPTS, NEW, layers):
        _teach(drafter, target, answer)
        target.config["eos_token_id"] = end
        prompt = answer.tokens[: answer.prompt_length].tolist()
        found = decode(target, drafter, [prompt] * len(rules), rules, DEPTH, NEW)
        rows: Rows = {}
        for rule, one in zip(rules, found, strict=True):
            loop = list(by_rows(target, drafter, prompt, rule, rows))
            assert one.tokens == [token for emitted, *_ in loop for token in emitted]
            shown = [(cycle.emitted, cycle.checked, cycle.fired) for cycle in one.cycles]
            assert shown == [(len(emitted), checks, at) for emitted, checks, at, _ in loop[1:]]
            for cycle, (*_, facts) in zip(one.cycles, loop[1:], strict=True):
                seen = zip(cycle.target_entropy, cycle.draft_entropy, cycle.overlap, strict=False)
                assert sum(list(seen)[: len(facts)], ()) == pytest.approx(sum(facts, ()), abs=1e-4)
            fired += sum(cycle.fired is not None for cycle in one.cycles)
            kept += sum(cycle.accepted for cycle in one.cycles)
    assert fired > 15
    assert kept > 15


def by_rows(
    target: PlainTarget,
    drafter: Drafter,
    prompt: list[int],
    rule: EasdRule | None,
    rows: Rows,
) -> Iterator[tuple[list[int], int, int | None, list[tuple[float, ...]]]]:
    """Of the prefill and of every cycle: tokens, checks, fired, and both entropies (nats) and the
    overlap at each drafted position that was reached. Every row is computed from the first token
    on, without a cache of the models; ``rows`` keeps it for the other rules."""
    layers = drafter.config.target_layer_ids
    assert layers is not None
    ids = torch.arange(len(drafter.d2t)) + drafter.d2t

    def run(tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if tuple(tokens) not in rows:
            at, cache = torch.zeros(1, dtype=torch.long), target.new_cache(1)
            out = target.forward(torch.tensor([tokens]), at, cache, tap_layers=layers)
            rows[tuple(tokens)] = target.logits(out.final)[0, -1], torch.cat(out.taps, -1)[0]
        return rows[tuple(tokens)]

    tokens = [*prompt, int(run(prompt)[0].argmax())]
    n = 10 if rule is None else rule.top_n
    yield tokens[-1:], 0, None, []
    over = tokens[-1] in target.eos_ids
    while not over and len(tokens) < len(prompt) + NEW:
        chain, laws = draft(target, drafter, tokens, run(tokens)[1][:-1])
        emitted: list[int] = []
        checks, fired = 0, None
        facts: list[tuple[float, ...]] = []
        for at in range(DEPTH + 1):
            p = run([*tokens, *emitted])[0].softmax(-1)
            token = int(p.argmax())
            stop = at == DEPTH or token != chain[at]
            if at < DEPTH:
                q, x = laws[at], chain[at]
                common = {*p.topk(n).indices.tolist()} & {*ids[q.topk(n).indices].tolist()}
                facts.append((entropy(p), entropy(q), len(common) / n))
            if at < DEPTH and rule is not None and (not stop or not rule.accepted_only):
                checks += 1
                units = (math.log(len(p)), math.log(len(q))) if rule.normalised else (1.0, 1.0)
                if (
                    entropy(p) / units[0] > rule.target_entropy
                    and entropy(q) / units[1] > rule.draft_entropy
                    and len(common) / n >= rule.overlap
                ):
                    fired, stop = at, True
                    left = p.clone()
                    if rule.residual:
                        left[ids] -= q
                    left[x] = -1.0
                    token = int(left.argmax())
            emitted.append(token)
            over = token in target.eos_ids or len(tokens) + len(emitted) == len(prompt) + NEW
            if stop or over:
                break
        tokens += emitted
        yield emitted, checks, fired, facts


def draft(
    target: PlainTarget, drafter: Drafter, tokens: list[int], taps: torch.Tensor
) -> tuple[list[int], list[torch.Tensor]]:
    chain: list[int] = []
    laws = []
    with torch.no_grad():
        features = drafter.fuse_taps(taps)
        for _ in range(DEPTH):
            embeds = target.embedding[torch.tensor([*tokens, *chain][1:])][None]
            out = drafter(embeds, features[None], torch.arange(len(features))[None])[0, -1]
            laws.append(drafter.logits(out).softmax(-1))
            best = int(laws[-1].argmax())
            chain.append(best + int(drafter.d2t[best]))
            features = torch.cat([features, out[None]])
    return chain, laws


def entropy(law: torch.Tensor) -> float:
    return -sum(float(p) * math.log(p) for p in law.tolist() if p > 0)


def test_what_does_not_fit_is_refused() -> None:
    target, drafter = random_target(), make("edsd")
    with pytest.raises(ValueError, match="have to fit into 64 positions"):
        decode(target, drafter, [[1] * 50], [None], 4, 11)
    assert len(decode(target, drafter, [[1] * 50], [None], 4, 10)[0].tokens) == 10
    with pytest.raises(ValueError, match="expected prompts of 1 to"):
        decode(target, drafter, [[]], [None], 4, 10)
    bare = make("eagle3")
    bare.config = replace(bare.config, target_layer_ids=None)
    with pytest.raises(ValueError, match="pass tap_layers"):
        decode(target, bare, [[1]], [None], 4, 10)
