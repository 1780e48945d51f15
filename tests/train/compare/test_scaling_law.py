"""Learning curves: the law is found where it holds, and doubted where it does not."""

from __future__ import annotations

import pytest
import torch

from sgl_entropy.train.compare.scaling_law import curve_table, fit_law, foresee
from sgl_entropy.train.samples.batches import first_tokens
from sgl_entropy.train.samples.store import Store

TOKENS = [50_000.0, 100_000.0, 200_000.0, 400_000.0]


def law(n: float) -> float:
    return 2.6 - 30.0 * n**-0.325


def noisy(taus: list[float], spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, len(taus), generator=generator, dtype=torch.float64)
    return torch.tensor(taus, dtype=torch.float64) + spread * noise


def test_a_law_that_holds_is_found() -> None:
    taus = [law(n) for n in TOKENS]
    curve = foresee(TOKENS, taus, noisy(taus, 1e-4))
    assert curve.law
    assert curve.law.limit == pytest.approx(2.6, abs=0.01)
    assert curve.law.power == pytest.approx(0.325, abs=0.01)
    assert curve.law.size == pytest.approx(30.0, rel=0.1)
    for one in curve.law.ahead:
        assert one.tau == pytest.approx(law(one.tokens), abs=2e-3)
        assert one.interval[0] <= one.tau <= one.interval[1]
    assert [one.tokens for one in curve.law.ahead] == [800_000, 1_600_000]
    assert not curve.note


def test_noise_widens_what_is_foreseen_the_more_the_further() -> None:
    taus = [law(n) for n in TOKENS]
    curve = foresee(TOKENS, taus, noisy(taus, 0.02))
    assert curve.law
    widths = [high - low for low, high in (one.interval for one in curve.law.ahead)]
    assert 0.02 < widths[0] < widths[1]


def test_the_law_never_falls_and_says_so() -> None:
    taus = [2.0, 1.9, 1.8]
    curve = foresee(TOKENS[:3], taus, noisy(taus, 1e-3))
    assert curve.law
    assert curve.law.size == 0.0
    assert "does not rise" in curve.note
    assert all(one.tau == pytest.approx(1.9) for one in curve.law.ahead)


def test_two_budgets_carry_no_law() -> None:
    curve = foresee(TOKENS[:2], [1.5, 1.6], noisy([1.5, 1.6], 0.01))
    assert curve.law is None
    assert "at least three" in curve_table({"edsd": curve})


def test_draws_are_fitted_like_single_curves() -> None:
    tokens = torch.tensor(TOKENS, dtype=torch.float64)
    draws = noisy([law(n) for n in TOKENS], 0.01)
    together = fit_law(tokens, draws)
    for i in (0, 17, 399):
        alone = fit_law(tokens, draws[i : i + 1])
        for whole, one in zip(together, alone, strict=True):
            assert float(whole[i]) == float(one[0])


def test_a_budget_takes_the_first_answers(tiny_store: Store) -> None:
    entries = tiny_store.entries
    some = first_tokens(entries, 60)
    answers = [e.length - e.prompt_length for e in some]
    assert some == entries[: len(some)]
    assert sum(answers) >= 60 > sum(answers[:-1])
    assert first_tokens(entries, 0) == entries
    with pytest.raises(ValueError, match=r"fit\.answer_tokens is 100000, and the store holds"):
        first_tokens(entries, 100_000)
