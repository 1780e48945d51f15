"""The few statistics that the figures need; pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Median with the quartiles (inclusive method). Raises ValueError for no values."""
    if not values:
        raise ValueError("spread: no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def break_even(speedups: Mapping[int, float]) -> float | None:
    """The batch size at which a speed-up falls to 1, from speed-ups by batch size.

    Linear in the logarithm of the batch size between the last measured size that pays and the
    next. None where the largest measured size still pays; 0.0 where not even the smallest does.
    Raises ValueError for no sizes.
    """
    if not speedups:
        raise ValueError("break_even: no batch sizes")
    sizes = sorted(speedups)
    paying = [size for size in sizes if speedups[size] > 1.0]
    if not paying:
        return 0.0
    last = paying[-1]
    if last == sizes[-1]:
        return None
    following = sizes[sizes.index(last) + 1]
    above, below = speedups[last] - 1.0, 1.0 - speedups[following]
    share = above / (above + below)
    return float(math.exp(math.log(last) + share * (math.log(following) - math.log(last))))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of y over x. Raises ValueError for fewer than two points."""
    if len(points) < 2:
        raise ValueError("slope: fewer than two points")
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
