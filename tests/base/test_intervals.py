"""Intervals with teeth: on queues whose mean is known they hold it as often as they say."""

from __future__ import annotations

import math
import random

import pytest

from sgl_entropy.base.intervals import (
    Interval,
    batch_means,
    lag_one,
    mean_interval,
    quartiles,
    ratio_interval,
    t_quantile,
)

RUNS = 200


def sojourns(load: float, count: int, seed: int, slower: float = 1.0) -> list[float]:
    """Times in an M/M/1 queue in its steady state: mean 1 / (1 - load) for service of mean 1.

    ``slower`` stretches the service times, of the same draws.
    """
    chance = random.Random(seed)
    # The stationary wait: nothing with probability 1 - load, else exponential.
    empty, first = chance.random(), chance.expovariate(1.0)
    wait = 0.0 if empty > load * slower else first * slower / (1 - load * slower)
    out = []
    for _ in range(count):
        service = chance.expovariate(1.0) * slower
        out.append(wait + service)
        wait = max(0.0, wait + service - chance.expovariate(load))
    return out


@pytest.mark.parametrize(("load", "count"), [(0.4, 1000), (0.6, 2000), (0.8, 6000)])
def test_the_mean_of_a_queue_lies_in_95_of_100_intervals(load: float, count: int) -> None:
    truth = 1 / (1 - load)
    found = [mean_interval(sojourns(load, count, seed)) for seed in range(RUNS)]
    covered = sum(interval.contains(truth) for interval in found) / RUNS
    assert 0.90 <= covered <= 0.98
    # Right, and of use: the plain standard error would cover far less with a far narrower one.
    assert sum(interval.half for interval in found) / RUNS < 0.45 * truth


def test_the_plain_standard_error_would_not_do() -> None:
    """What the intervals above are for: a queue's latencies are not independent."""
    covered = 0
    for seed in range(RUNS):
        values = sojourns(0.8, 6000, seed)
        mean = sum(values) / len(values)
        error = math.sqrt(sum((v - mean) ** 2 for v in values)) / len(values)
        covered += abs(mean - 5.0) < 1.96 * error
    assert covered / RUNS < 0.5


def upper_width(interval: Interval) -> float:
    """The upper half of an interval, on a logarithmic scale."""
    assert interval.high is not None
    return math.log(interval.high / interval.value)


@pytest.mark.parametrize(
    ("load", "count", "slower"), [(0.6, 2000, 1.1), (0.6, 2000, 0.7), (0.4, 1000, 1.5)]
)
def test_the_ratio_of_two_arms_under_the_same_arrivals(
    load: float, count: int, slower: float
) -> None:
    """The arm serves ``slower`` times as long: its mean is slower / (1 - load * slower)."""
    truth = slower / (1 - load * slower) * (1 - load)
    found, widths = 0, []
    for seed in range(RUNS):
        base, arm = sojourns(load, count, seed), sojourns(load, count, seed, slower)
        paired = ratio_interval(arm, base)
        found += paired.contains(truth)
        alone = [mean_interval(one) for one in (arm, sojourns(load, count, seed + RUNS))]
        # Relative errors of two series that share nothing add as squares.
        unpaired = math.hypot(*(upper_width(one) for one in alone))
        widths.append(upper_width(paired) / unpaired)
    assert 0.90 <= found / RUNS <= 0.98
    # Pairing is worth it: what both arms share cancels.
    assert sum(widths) / RUNS < 0.8


def test_an_interval_over_correlated_batches_says_that_it_cannot_be_trusted() -> None:
    rising = [float(i) for i in range(1000)]
    assert not mean_interval(rising).reliable
    chance = random.Random(1)
    assert mean_interval([chance.random() for _ in range(1000)]).reliable


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_values_give_no_interval(count: int) -> None:
    found = mean_interval([1.0] * count)
    assert (found.value, found.batches, found.reliable) == (1.0, 0, False)
    assert (found.low, found.high) == (None, None)


def test_equal_values_have_no_spread() -> None:
    found = mean_interval([2.0] * 100)
    assert (found.low, found.high) == (2.0, 2.0)


def test_no_values_and_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="as many"):
        ratio_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="zero"):
        ratio_interval([1.0, 2.0], [0.0, 0.0])


@pytest.mark.parametrize("degrees", [1, 2, 5, 9, 11, 30])
def test_students_t(degrees: int) -> None:
    from scipy.stats import t

    for probability in (0.9, 0.975, 0.995):
        assert t_quantile(probability, degrees) == pytest.approx(
            t.ppf(probability, degrees), rel=3e-3
        )


def test_batches_are_of_equal_size_and_lose_nothing() -> None:
    values = [float(i) for i in range(103)]
    means = batch_means(values, 12)
    assert len(means) == 12
    assert means[0] == pytest.approx(4.0)
    assert lag_one([1.0, -1.0] * 50) == pytest.approx(-0.99 + 0.01)


def test_quartiles_are_inclusive() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        quartiles([])
