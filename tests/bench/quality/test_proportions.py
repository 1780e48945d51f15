"""Shares, paired differences and exact tests: known values, and the stated level held."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from sgl_entropy_bench.quality.proportions import (
    accuracy,
    difference,
    holm,
    sign_flips,
)

from sgl_entropy.base.intervals import wilson


def test_wilson_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, total in [(0, 1), (1, 1), (0, 20), (8, 10), (50, 100), (1300, 1319)]:
        interval = stats.binomtest(right, total).proportion_ci(method="wilson")
        assert wilson(right, total) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_wilson_covers_as_stated() -> None:
    for total in (20, 100):
        covered = []
        for step in range(1, 100):
            share = step / 100
            covered.append(
                sum(
                    math.comb(total, k) * share**k * (1 - share) ** (total - k)
                    for k in range(total + 1)
                    if wilson(k, total)[0] <= share <= wilson(k, total)[1]
                )
            )
        assert 0.945 < sum(covered) / len(covered) < 0.96
        assert min(covered) > 0.83


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_share(right: int, total: int) -> None:
    with pytest.raises(ValueError, match="is no share"):
        wilson(right, total)


def test_sign_flips_of_one_sample_are_the_binomial_test() -> None:
    """McNemar's exact test."""
    stats = pytest.importorskip("scipy.stats")
    for only_a, only_b, both in [(0, 0, 5), (0, 5, 0), (0, 6, 3), (9, 3, 4), (140, 200, 9)]:
        p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert flips(only_a, only_b, both) == pytest.approx(p, rel=1e-9)
    # Weights beyond the largest float, and a quotient below the smallest normal one.
    assert flips(0, 1040) == 2.0**-1039
    assert flips(90, 90) == 1.0


def flips(only_a: int, only_b: int, both: int = 0) -> float:
    return sign_flips([1] * only_a + [-1] * only_b + [0] * both)


def test_sign_flips_against_every_assignment() -> None:
    generator = random.Random(1)
    for _ in range(30):
        differences = [generator.randint(-4, 4) for _ in range(9)]
        far = abs(sum(differences))
        sums = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))
        ]
        assert sign_flips(differences) == pytest.approx(sum(s >= far for s in sums) / len(sums))


def test_a_true_null_is_rejected_no_more_often_than_stated() -> None:
    for total in (6, 15, 40):
        weights = [math.comb(total, k) / 2**total for k in range(total + 1)]
        rejected = sum(w for k, w in enumerate(weights) if flips(k, total - k) < 0.05)
        assert rejected <= 0.05
    # The fewest answers that can show anything at all.
    assert flips(0, 5) > 0.05 > flips(0, 6)


@pytest.mark.parametrize(("only_a", "only_b"), [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1)])
def test_the_difference_covers_as_stated(only_a: float, only_b: float) -> None:
    count = 40
    covered = 0.0
    for a in range(count + 1):
        for b in range(count + 1 - a):
            chance = math.comb(count, a) * math.comb(count - a, b) * only_a**a * only_b**b
            chance *= (1 - only_a - only_b) ** (count - a - b)
            if chance < 1e-7:
                continue
            interval = difference([1.0] * a + [-1.0] * b + [0.0] * (count - a - b))
            covered += chance * (interval.low <= only_a - only_b <= interval.high)
    # Above the level where hardly a pair differs, never far below it.
    assert covered > 0.94


def test_a_difference_of_nothing_still_has_a_width() -> None:
    interval = difference([0.0] * 50)
    assert interval.value == 0
    assert interval.low == pytest.approx(-interval.high)
    assert 0.03 < interval.high < 0.05
    assert difference([1.0, 1.0]).high == 1.0
    with pytest.raises(ValueError, match="no pair"):
        difference([])


def test_accuracy_of_several_samples_counts_questions() -> None:
    # Every question always right or always wrong: more samples add nothing.
    sure = accuracy([1.0] * 30 + [0.0] * 30, samples=8)
    assert (sure.low, sure.high) == pytest.approx(wilson(30, 60))
    # No question differs from another: every answer counts.
    even = accuracy([0.5] * 60, samples=8)
    assert (even.low, even.high) == pytest.approx(wilson(240, 480))
    assert accuracy([1.0, 0.0, 1.0]).low == wilson(2, 3)[0]
    with pytest.raises(ValueError, match="no question"):
        accuracy([])


def test_accuracy_of_several_samples_covers_as_stated() -> None:
    generator = random.Random(7)
    covered, repeats = 0, 1500
    for _ in range(repeats):
        shares = []
        for _ in range(60):
            chance = generator.betavariate(0.6, 0.9)
            shares.append(sum(generator.random() < chance for _ in range(4)) / 4)
        interval = accuracy(shares, samples=4)
        covered += interval.low <= 0.6 / 1.5 <= interval.high
    assert 0.935 < covered / repeats < 0.985


def test_holm_never_orders_anew() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
