"""EASD's rule against its words, and the reference walk against its law."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sgl_entropy.verify.easd import (
    Thresholds,
    Uncertainty,
    fires,
    overlap,
    uncertainty,
    verify_chain,
    without,
)
from sgl_entropy.verify.rule import EasdRule

VOCAB = 8
OPEN = EasdRule(target_entropy=0.0, draft_entropy=0.0, top_n=3, overlap=0.0)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_entropy_and_top_tokens() -> None:
    logits = random(5, 20, seed=1, scale=2)
    found = uncertainty(logits, EasdRule(top_n=4))
    for row, entropy, ids in zip(logits, found.entropy, found.top_ids, strict=True):
        p = row.double().softmax(0)
        assert float(entropy) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)
        assert ids.tolist() == row.argsort(descending=True)[:4].tolist()
    share = uncertainty(logits, EasdRule(0.5, 0.5, 4, normalised=True)).entropy
    assert torch.allclose(share, found.entropy / math.log(20))


def test_a_draft_vocabulary_is_mapped_to_the_targets_ids() -> None:
    d2t = torch.tensor([3, 10, 20])  # 0 -> 3, 1 -> 11, 2 -> 22
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert uncertainty(logits, EasdRule(top_n=2), d2t).top_ids.tolist() == [[11, 22]]
    # Fewer tokens than N: the missing ones match nothing.
    assert uncertainty(logits, EasdRule(top_n=5), d2t).top_ids.tolist() == [[11, 22, 3, -1, -1]]


def test_overlap_is_that_of_sets() -> None:
    generator = torch.Generator().manual_seed(3)
    for n in (1, 2, 5, 10):
        a, b = (
            torch.stack([torch.randperm(14, generator=generator)[:n] for _ in range(50)])
            for _ in range(2)
        )
        expected = [len({*x} & {*y}) / n for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert overlap(a, b).tolist() == pytest.approx(expected)
    assert float(overlap(torch.tensor([-1, 2]), torch.tensor([-1, 2]))) == 0.5


@pytest.mark.parametrize("case", list(itertools.product((1.9, 2.1), (1.9, 2.1), (0.25, 0.75))))
def test_it_fires_where_all_three_conditions_hold(case: tuple[float, float, float]) -> None:
    target_entropy, draft_entropy, common = case
    a = torch.tensor([[0, 1, 2, 3]])
    b = torch.tensor([[0, 1, 2, 9]]) if common == 0.75 else torch.tensor([[0, 7, 8, 9]])
    found = fires(
        Uncertainty(torch.tensor([target_entropy]), a),
        Uncertainty(torch.tensor([draft_entropy]), b),
        Thresholds.of([EasdRule(top_n=4)]),
    )
    assert found.tolist() == [case == (2.1, 2.1, 0.75)]


def test_thresholds_are_strict_for_entropies_and_reached_for_the_overlap() -> None:
    ids = torch.tensor([[0, 1]])
    at = Uncertainty(torch.tensor([2.0]), ids)
    above = Uncertainty(torch.tensor([2.0]).nextafter(torch.tensor(3.0)), ids)
    half = Uncertainty(above.entropy, torch.tensor([[0, 9]]))
    limits = Thresholds.of([EasdRule(top_n=2, overlap=0.5)])
    assert [bool(fires(t, d, limits)) for t, d in ((at, above), (above, at), (above, half))] == [
        *(False, False, True)
    ]


def test_requests_without_it_and_positions_without_a_distribution_never_fire() -> None:
    ids = torch.zeros(3, 1, dtype=torch.long)
    one = Uncertainty(torch.tensor([9.0, 9.0, math.nan]), ids)
    limits = Thresholds.of([OPEN, None, OPEN])
    assert fires(one, one, limits).tolist() == [True, False, False]
    assert fires(one, one, limits.at(torch.tensor([1, 0, 0]))).tolist() == [False, True, False]


def test_what_is_left_without_a_token() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    left, some = without(probs, torch.tensor([0, 1]))
    assert torch.allclose(left[0], torch.tensor([0.0, 0.6, 0.4]))
    # A grammar that allows this token alone: it stands.
    assert some.tolist() == [True, False]
    assert left[1].tolist() == [0.0, 1.0, 0.0]


def test_the_residual_without_a_token() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2]]).repeat(2, 1)
    draft = torch.tensor([[0.6, 0.1, 0.1], [0.4, 0.9, 0.9]])
    left, some = without(probs, torch.tensor([0, 0]), draft)
    assert torch.allclose(left[0], torch.tensor([0.0, 2 / 3, 1 / 3]))
    # The drafter is above the target wherever a token is left: the target's own share decides.
    assert torch.allclose(left[1], torch.tensor([0.0, 0.6, 0.4]))
    assert some.tolist() == [True, True]


def chain(seed: int, k: int = 4, scale: float = 1.0) -> tuple[Tensor, Tensor, Uncertainty]:
    """Raw logits of the target, drafted tokens and the drafter's uncertainty, which agree often."""
    raw = random(k + 1, VOCAB, seed=seed, scale=scale)
    drafting = raw[:k] + 0.5 * random(k, VOCAB, seed=seed + 10_000)
    return raw, drafting.argmax(-1), uncertainty(drafting, EasdRule(top_n=3))


def by_the_words(
    raw: Tensor, drafted: Tensor, draft: Uncertainty, rule: EasdRule | None
) -> tuple[list[int], int | None]:
    """Greedy verification as SPEC says it, in plain Python."""
    tokens: list[int] = []
    for at, row in enumerate(raw.tolist()):
        order = sorted(range(len(row)), key=lambda token: -row[token])
        if at == len(drafted):
            return [*tokens, order[0]], None
        x = int(drafted[at])
        if rule is not None and (order[0] == x or not rule.accepted_only):
            biggest = max(row)
            weights = [math.exp(z - biggest) for z in row]
            p = [w / sum(weights) for w in weights]
            entropy = -sum(q * math.log(q) for q in p)
            common = len({*order[: rule.top_n]} & {*draft.top_ids[at].tolist()}) / rule.top_n
            if (
                entropy > rule.target_entropy
                and float(draft.entropy[at]) > rule.draft_entropy
                and common >= rule.overlap
            ):
                # The runner-up when x is the target's best, else the target's best.
                return [*tokens, order[1] if order[0] == x else order[0]], at
        tokens.append(order[0])
        if order[0] != x:
            return tokens, None
    raise AssertionError


@pytest.mark.parametrize("accepted_only", [False, True])
def test_greedy_chains_go_as_the_words_say(accepted_only: bool) -> None:
    rule = EasdRule(1.7, 1.7, 3, 0.6, accepted_only=accepted_only)
    fired = kept = 0
    for seed in range(400):
        raw, drafted, draft = chain(seed)
        found = verify_chain(raw, raw.softmax(-1), drafted, draft, rule)
        assert (found.tokens, found.fired) == by_the_words(raw, drafted, draft, rule)
        fired += found.fired is not None
        kept += found.accepted
    assert 40 < fired < 360
    assert kept > 100


def test_without_a_rule_it_is_ordinary_verification() -> None:
    for seed in range(200):
        raw, drafted, draft = chain(seed)
        found = verify_chain(raw, raw.softmax(-1), drafted, draft, None)
        assert (found.tokens, found.fired) == by_the_words(raw, drafted, draft, None)
        assert found.checked == 0
        never = EasdRule(target_entropy=math.log(VOCAB) + 1, top_n=3)
        assert verify_chain(raw, raw.softmax(-1), drafted, draft, never).tokens == found.tokens


def drawn(rule: EasdRule | None, probs: Tensor, drafted: int, **more: Any) -> list[float]:
    """Frequencies of the first emitted token over a grid of both coins."""
    raw = probs.log().unsqueeze(0).repeat(2, 1)
    draft = uncertainty(raw[:1], EasdRule(top_n=3))
    counts = [0] * len(probs)
    grid = (torch.arange(60) + 0.5) / 60
    for first, second in itertools.product(grid, grid):
        coins = torch.stack([first, first, second, second]).view(2, 2)
        walk = verify_chain(
            raw, raw.softmax(-1), torch.tensor([drafted]), draft, rule, coins, **more
        )
        counts[walk.tokens[0]] += 1
    return [count / 3600 for count in counts]


PROBS = torch.tensor([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("drafted", [0, 2])
def test_sampling_without_firing_is_the_targets_law(drafted: int) -> None:
    assert drawn(None, PROBS, drafted) == pytest.approx(PROBS.tolist(), abs=0.01)


@pytest.mark.parametrize("drafted", [0, 2])
def test_a_fired_position_draws_from_the_rest(drafted: int) -> None:
    left = [0.0 if i == drafted else float(p) for i, p in enumerate(PROBS)]
    expected = [p / sum(left) for p in left]
    assert drawn(OPEN, PROBS, drafted) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("drafted", [0, 2])
def test_checking_accepted_tokens_alone_has_the_same_law_where_it_always_fires(
    drafted: int,
) -> None:
    """x would be taken with P(x); that share goes to the others as they are to each other."""
    rule = EasdRule(0.0, 0.0, 3, 0.0, accepted_only=True)
    left = [0.0 if i == drafted else float(p) for i, p in enumerate(PROBS)]
    expected = [p / sum(left) for p in left]
    assert drawn(rule, PROBS, drafted) == pytest.approx(expected, abs=0.02)


def test_a_draw_of_another_token_stands_where_the_rule_fires() -> None:
    """It is a draw of P_t without x already; the residual is another law, and draws again."""
    raw = PROBS.log().repeat(2, 1)
    draft = uncertainty(raw[:1], OPEN)
    beside = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    for first, drawn_first in ((0.1, 0), (0.5, 1), (0.8, 2)):
        for second in (0.0, 0.4, 0.99):
            coins = torch.tensor([[first] * 2, [second] * 2])
            walk, residual = (
                verify_chain(
                    raw, raw.softmax(-1), torch.tensor([1]), draft, rule, coins, draft_probs=beside
                )
                for rule in (OPEN, replace(OPEN, residual=True))
            )
            left = [0, 2, 3][int(torch.bucketize(second, torch.tensor([4 / 7, 6 / 7])))]
            expected = left if drawn_first == 1 else drawn_first
            assert (walk.tokens, walk.fired, walk.checked) == ([expected], 0, 1)
            assert (residual.tokens, residual.fired) == ([left], 0)


def test_the_residual_form_uses_the_drafters_probabilities() -> None:
    rule = EasdRule(0.0, 0.0, 3, 0.0, residual=True)
    draft = torch.tensor([[0.4, 0.1, 0.2, 0.3]])
    assert drawn(rule, PROBS, 0, draft_probs=draft) == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_a_token_without_alternative_stands() -> None:
    """Unsure models under a grammar that allows one token: the rule finds nothing to put there."""
    raw = torch.zeros(2, VOCAB)
    forced = torch.zeros(2, VOCAB)
    forced[:, 5] = 1.0
    draft = uncertainty(raw[:1], EasdRule(top_n=3))
    walk = verify_chain(raw, forced, torch.tensor([5]), draft, OPEN)
    assert (walk.tokens, walk.fired, walk.checked) == ([5, 5], None, 1)


def test_a_bonus_token_is_not_checked() -> None:
    raw = random(1, VOCAB)
    none = Uncertainty(torch.zeros(0), torch.zeros(0, 3, dtype=torch.long))
    walk = verify_chain(raw, raw.softmax(-1), torch.zeros(0, dtype=torch.long), none, OPEN)
    assert (len(walk.tokens), walk.checked, walk.fired) == (1, 0, None)
