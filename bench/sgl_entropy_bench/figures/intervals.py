"""Intervals of pooled figures from the spread between their units: prompts, or paired batches.

A pooled ratio (tokens / cycles) is no mean of its units' ratios, so its interval comes from the
jackknife: the figure without each unit in turn (M. Quenouille, J. Tukey), with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sgl_entropy_bench.load.judge.intervals import t_quantile

T = TypeVar("T")


@dataclass(frozen=True)
class Pooled:
    """A figure over all units and its interval; ``low`` and ``high`` are None where none is known.

    That is so for one unit, and where all leave-one-out values are the same number 0, which says
    that nothing was seen and not that nothing can be.
    """

    value: float
    low: float | None
    high: float | None
    units: int

    def to_dict(self) -> dict[str, float | None]:
        """For the JSON file."""
        ends = {"low": self.low, "high": self.high}
        return {
            "value": round(self.value, 4),
            **{name: None if end is None else round(end, 4) for name, end in ends.items()},
        }


def jackknife(
    units: Sequence[T],
    figure: Callable[[Sequence[T]], float],
    level: float = 0.95,
    most: float = math.inf,
) -> Pooled:
    """``figure`` of all ``units`` with its interval.

    Symmetric in the logarithm where the figure stays above zero whichever unit is left out, as
    ratios are; plain otherwise, and then cut off at zero where no value is below. ``most``: what
    the figure cannot exceed, such as 1 for a share.

    Raises:
        ValueError: no units.
    """
    if not units:
        raise ValueError("jackknife: no units")
    value, count = figure(units), len(units)
    if count < 2:
        return Pooled(value, None, None, count)
    parts = [figure([*units[:i], *units[i + 1 :]]) for i in range(count)]
    if value == 0 and not any(parts):
        return Pooled(value, None, None, count)
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
    return Pooled(value, low, min(most, high), count)


def shown(figure: dict[str, float | None], digits: int = 2) -> str:
    """``1.23 (1.20-1.26)``, from ``Pooled.to_dict``."""
    value = f"{figure['value']:.{digits}f}"
    low, high = figure["low"], figure["high"]
    if low is None or high is None:
        return value
    return f"{value} ({low:.{digits}f}-{high:.{digits}f})"
