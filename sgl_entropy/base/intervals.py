"""Confidence intervals, on the standard library alone: batch means, jackknife, Wilson.

**Batch means**, for values in the order in which they were measured. Neighbouring requests share a
queue, so their latencies are correlated and the plain standard error is far too small. Means of a
few long batches are nearly independent. The correlation left between them widens the interval as
that of a first-order autoregression would (ours; at least 0.3 is assumed, because twelve means
cannot show a small correlation and skewed latencies need the width). Latencies are never negative,
so the interval is symmetric in the logarithm. That of a ratio is symmetric in the logarithm of its
excess over 1, because a run that met few long queues understates both the excess of the slower arm
and its spread. The test of this module checks the stated 95 % against queues with known means.
Where even the batches are strongly correlated, the interval is marked as not reliable.

**Jackknife**, for pooled figures such as tokens / cycles. A pooled ratio is no mean of the ratios
of its units, so its interval comes from the figure without each unit in turn (M. Quenouille,
J. Tukey), with Student's t.

**Wilson's score interval**, for a share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist, fmean, quantiles
from typing import TypeVar

T = TypeVar("T")

_BATCHES = 12
LEAST_CORRELATION = 0.3
_HOPELESS = 0.5


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: the estimate.
        low, high: the ends of the interval; None where that end is not known.
        batches: how many independent units the spread was computed from: batch means, prompts.
        reliable: False = too few values, or batches that are still correlated: run longer.
    """

    value: float
    low: float | None
    high: float | None
    batches: int
    reliable: bool

    @property
    def half(self) -> float:
        """Half the width of the interval; infinite where an end is not known."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        """Whether ``value`` lies between the ends; an end that is not known excludes nothing."""
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)

    def scaled(self, factor: float) -> Interval:
        """The interval of ``factor`` times the figure; ``factor`` > 0."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high)

    def inverse(self) -> Interval:
        """The interval of 1 / the figure, which is above zero."""
        low = None if self.high is None else 1 / self.high
        high = None if self.low is None or self.low <= 0 else 1 / self.low
        return replace(self, value=1 / self.value, low=low, high=high)

    def rounded(self) -> dict[str, float | None]:
        """``value``, ``low`` and ``high`` to four places, for the JSON file of a figure."""
        ends = {"low": self.low, "high": self.high}
        return {
            "value": round(self.value, 4),
            **{name: None if end is None else round(end, 4) for name, end in ends.items()},
        }


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
        return ratio_interval(denominator, numerator, level).inverse()
    ratio = above / below
    spread = [(x - ratio * y) / below for x, y in zip(numerator, denominator, strict=True)]
    error = _half_width(spread, level)
    if ratio > 1 and error.half < ratio - 1:
        factor = math.exp(error.half / (ratio - 1))
        low, high = 1 + (ratio - 1) / factor, 1 + (ratio - 1) * factor
        return Interval(ratio, low, high, error.batches, error.reliable)
    return _around(ratio, error)


@dataclass(frozen=True)
class _Error:
    half: float
    batches: int
    reliable: bool


def _half_width(values: list[float], level: float) -> _Error:
    """Half the width of the interval of the mean of ``values``; infinite for too few."""
    count = min(_BATCHES, len(values) // 2)
    if count < 2:
        return _Error(math.inf, 0, False)
    means = batch_means(values, count)
    mean, correlation = fmean(means), lag_one(means)
    variance = sum((m - mean) ** 2 for m in means) / (count - 1)
    assumed = min(max(correlation, LEAST_CORRELATION), 0.9)
    error = math.sqrt(variance / count * (1 + assumed) / (1 - assumed))
    reliable = count == _BATCHES and correlation < _HOPELESS
    return _Error(t_quantile(0.5 + level / 2, count - 1) * error, count, reliable)


def _around(value: float, error: _Error) -> Interval:
    """``value`` with its error, symmetric in the logarithm where it is above zero."""
    if not math.isfinite(error.half):
        return Interval(value, None, None, error.batches, False)
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


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The low quartile, the median and the high quartile (inclusive method).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("quartiles: no values")
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = quantiles(values, n=4, method="inclusive")
    return low, median, high


def jackknife(
    units: Sequence[T],
    figure: Callable[[Sequence[T]], float],
    level: float = 0.95,
    most: float = math.inf,
) -> Interval:
    """``figure`` of all ``units`` (prompts, or paired batches) with its interval.

    The interval is symmetric in the logarithm where the figure stays above zero whichever unit is
    left out, as ratios are. Otherwise it is plain, and cut off at zero where no value is below.
    Its ends are None for one unit, and where the figure is 0 without each unit in turn: that says
    that nothing was seen and not that nothing can be.

    Args:
        most: what the figure cannot exceed, such as 1 for a share.

    Raises:
        ValueError: no units.
    """
    if not units:
        raise ValueError("jackknife: no units")
    value, count = figure(units), len(units)
    if count < 2:
        return Interval(value, None, None, count, False)
    parts = [figure([*units[:i], *units[i + 1 :]]) for i in range(count)]
    if value == 0 and not any(parts):
        return Interval(value, None, None, count, False)
    logarithmic = value > 0 and min(parts) > 0
    scaled = [math.log(part) for part in parts] if logarithmic else parts
    mean = sum(scaled) / count
    error = math.sqrt((count - 1) / count * sum((part - mean) ** 2 for part in scaled))
    half = t_quantile(0.5 + level / 2, count - 1) * error
    if logarithmic:
        low, high = value * math.exp(-half), value * math.exp(half)
    else:
        low, high = value - half, value + half
        low = low if min(value, *parts) < 0 else max(0.0, low)
    return Interval(value, low, min(most, high), count, True)


def shown(figure: Mapping[str, float | None], digits: int = 2) -> str:
    """``1.23 (1.20-1.26)``, from ``Interval.rounded``."""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def wilson(right: float, total: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927).

    Args:
        right, total: counts; not whole where ``total`` is an effective number.

    Raises:
        ValueError: no trial, or more right than there are.
    """
    if not 0 <= right <= total or total <= 0:
        raise ValueError(f"wilson: {right:g} of {total:g} is no share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0 and 1 rounding would leave the end beside the share itself.
    low = 0.0 if right == 0 else (middle - half) / scale
    high = 1.0 if right == total else (middle + half) / scale
    return low, high
