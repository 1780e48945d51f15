"""Confidence intervals for means of correlated values: batch means (ours where it says so).

Neighbouring requests share a queue, so their latencies are correlated and the plain standard
error is far too small. Means of a few long batches are nearly independent; what correlation is
left between them widens the interval as that of a first-order autoregression would (ours, and
never less than by 0.3: twelve means cannot show a small one, and skewed latencies need it).
Latencies are never negative, so the interval is symmetric in the logarithm; that of a ratio in
the logarithm of its excess over 1, since a run that met few long queues understates both the
slower arm's excess and its spread. The test of this module holds the stated 95 % against queues
with known means. Where even the batches are strongly correlated, the
interval says that it cannot be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, fmean

_BATCHES = 12
LEAST_CORRELATION = 0.3
_HOPELESS = 0.5


@dataclass(frozen=True)
class Interval:
    """A mean, or a ratio of means, with its interval.

    Attributes:
        value: the estimate.
        low, high: the interval's ends; not finite where it cannot be computed.
        batches: how many batch means it rests on.
        reliable: False = too few values, or batches that are correlated still: run longer.
    """

    value: float
    low: float
    high: float
    batches: int
    reliable: bool

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of ``values``, in the order in which they were measured.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("mean_interval: no values")
    return _around(fmean(values), _half_width(list(values), level))


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], level: float = 0.95
) -> Interval:
    """mean(numerator) / mean(denominator) of paired values (the same request on two arms).

    By the delta method: the ratio's error is that of mean(x - ratio * y) / mean(y), in which what
    both arms share, the schedule and the prompts, cancels.

    Raises:
        ValueError: no values, not as many of one as of the other, or a mean of zero below.
    """
    if not numerator or len(numerator) != len(denominator):
        raise ValueError("ratio_interval: expected as many values on both sides")
    above, below = fmean(numerator), fmean(denominator)
    if below == 0:
        raise ValueError("ratio_interval: the denominator's mean is zero")
    if 0 < above < below:
        return _inverse(ratio_interval(denominator, numerator, level))
    ratio = above / below
    spread = [(x - ratio * y) / below for x, y in zip(numerator, denominator, strict=True)]
    error = _half_width(spread, level)
    if ratio > 1 and error.half < ratio - 1:
        factor = math.exp(error.half / (ratio - 1))
        low, high = 1 + (ratio - 1) / factor, 1 + (ratio - 1) * factor
        return Interval(ratio, low, high, error.batches, error.reliable)
    return _around(ratio, error)


def _inverse(found: Interval) -> Interval:
    low = 1 / found.high if math.isfinite(found.high) else -math.inf
    high = 1 / found.low if found.low > 0 else math.inf
    return Interval(1 / found.value, low, high, found.batches, found.reliable)


@dataclass(frozen=True)
class _Error:
    half: float
    batches: int
    reliable: bool


def _half_width(values: list[float], level: float) -> _Error:
    """Of the interval of the mean of ``values``; infinite for too few."""
    count = min(_BATCHES, len(values) // 2)
    if count < 2:
        return _Error(math.inf, 0, False)
    means = batch_means(values, count)
    mean, found = fmean(means), lag_one(means)
    variance = sum((m - mean) ** 2 for m in means) / (count - 1)
    left = min(max(found, LEAST_CORRELATION), 0.9)
    error = math.sqrt(variance / count * (1 + left) / (1 - left))
    reliable = count == _BATCHES and found < _HOPELESS
    return _Error(t_quantile(0.5 + level / 2, count - 1) * error, count, reliable)


def _around(value: float, error: _Error) -> Interval:
    """``value`` with its error, symmetric in the logarithm where it is above zero."""
    if not math.isfinite(error.half):
        return Interval(value, -math.inf, math.inf, error.batches, False)
    if value <= 0:
        low, high = value - error.half, value + error.half
    else:
        factor = math.exp(min(error.half / value, 700.0))
        low, high = value / factor, value * factor
    return Interval(value, low, high, error.batches, error.reliable)


def batch_means(values: Sequence[float], count: int) -> list[float]:
    """Means of ``count`` batches of neighbours, as equal in size as can be."""
    ends = [round(i * len(values) / count) for i in range(count + 1)]
    return [fmean(values[a:b]) for a, b in pairwise(ends)]


def lag_one(values: Sequence[float]) -> float:
    """Correlation of neighbours, corrected for its bias of -1/n; 0 where all are equal."""
    mean = fmean(values)
    total = sum((v - mean) ** 2 for v in values)
    if total == 0:
        return 0.0
    pairs = pairwise(values)
    return sum((a - mean) * (b - mean) for a, b in pairs) / total + 1 / len(values)


def t_quantile(probability: float, degrees: int) -> float:
    """Student's t: Hill's expansion around the normal quantile, within 0.3 % from 5 degrees on.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"t_quantile: degrees must be at least 1, found {degrees}")
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        a = 4 * probability * (1 - probability)
        return 2 * (probability - 0.5) * math.sqrt(2 / a)
    z, n = NormalDist().inv_cdf(probability), float(degrees)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / n**power for power, term in enumerate(terms))
