"""Two arms side by side: the same requests, paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from sgl_entropy_bench.load import metrics
from sgl_entropy_bench.load.intervals import Interval, mean_interval, ratio_interval
from sgl_entropy_bench.load.record import Record

Value = Callable[[Record], float | None]


def pairs(
    arm: Sequence[Record], baseline: Sequence[Record], value: Value
) -> list[tuple[float, float]]:
    """(arm's, baseline's) values of the requests that have one on both, by schedule."""
    there = {record.index: value(record) for record in baseline}
    both = ((value(record), there.get(record.index)) for record in arm)
    return [(a, b) for a, b in both if a is not None and b is not None]


def paired(
    arm: Sequence[Record], baseline: Sequence[Record], value: Value = metrics.e2e
) -> dict[str, Any] | None:
    """The ratio of means with its interval, arm over baseline; None without pairs."""
    found = pairs(arm, baseline, value)
    if not found or fmean(b for _, b in found) == 0:
        return None
    return described(ratio_interval([a for a, _ in found], [b for _, b in found]), len(found))


def described(interval: Interval, count: int) -> dict[str, Any]:
    """A ratio's interval as JSON takes it, and whether it differs from 1."""
    return {
        **(metrics.as_json(interval) or {}),
        "pairs": count,
        "differs": interval.reliable and not interval.contains(1.0),
    }


def quotient(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """mean(above) / mean(below) of two series that are not paired; None where one is empty or
    the divisor is zero. The relative errors add as squares."""
    if not above or not below or fmean(below) <= 0 or fmean(above) <= 0:
        return None
    a, b = mean_interval(above), mean_interval(below)
    wide = math.hypot(math.log(a.high / a.value), math.log(b.high / b.value))
    ratio, factor = a.value / b.value, math.exp(min(wide, 700.0))
    return Interval(
        ratio,
        ratio / factor,
        ratio * factor,
        min(a.batches, b.batches),
        a.reliable and b.reliable,
    )


def parity(arm: Sequence[Record], baseline: Sequence[Record]) -> float | None:
    """Share of requests with the same text on both; None where none has text on both."""
    there = {record.index: record.text_hash for record in baseline if record.ok}
    both = [
        (record.text_hash, there[record.index])
        for record in arm
        if record.ok and record.index in there
    ]
    return sum(a == b for a, b in both) / len(both) if both else None


def against_baseline(
    results: Sequence[dict[str, Any]],
    measured: Callable[[dict[str, Any]], Sequence[Record]],
    baseline: str,
    greedy: bool,
) -> None:
    """Add to each result how it stands against the baseline arm at the same load.

    Args:
        measured: the measured records behind a result.
        greedy: outputs can be equal, so they are compared.
    """
    bases = {result["load"]: result for result in results if result["arm"] == baseline}
    for result in results:
        base = bases.get(result["load"])
        if result["arm"] == baseline or base is None:
            continue
        here, there = measured(result), measured(base)
        result["against"] = {
            "arm": baseline,
            "e2e_ratio": paired(here, there, metrics.e2e),
            "ttft_ratio": paired(here, there, metrics.ttft),
            "equal_outputs": parity(here, there) if greedy else None,
        }
        if result.get("window") and base.get("window"):
            ratio = quotient(result["window"]["pieces"], base["window"]["pieces"])
            if ratio is not None:
                result["against"]["throughput_ratio"] = described(ratio, 0)


def by_benchmark(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by benchmark, in the order of their names."""
    groups: dict[str, list[Record]] = metrics.by_key(records, lambda record: record.benchmark)
    return groups
