"""Two arms side by side: the same requests, paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge import metrics
from sgl_entropy_bench.load.judge.intervals import Interval, mean_interval, ratio_interval

Value = Callable[[RequestRecord], float | None]


def pairs(
    arm: Sequence[RequestRecord], baseline: Sequence[RequestRecord], value: Value
) -> list[tuple[float, float]]:
    """(arm's, baseline's) values of the requests that have one on both, by schedule."""
    there = {record.index: value(record) for record in baseline}
    both = ((value(record), there.get(record.index)) for record in arm)
    return [(a, b) for a, b in both if a is not None and b is not None]


def paired(
    arm: Sequence[RequestRecord], baseline: Sequence[RequestRecord], value: Value = metrics.e2e
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


def speedup(
    arm: Sequence[RequestRecord], baseline: Sequence[RequestRecord]
) -> dict[str, Any] | None:
    """Tokens a second of an arm over the baseline's, of a closed loop, paired by request.

    With every place taken, tokens/s are places * mean tokens / mean latency (Little's law), so the
    ratio is one of four means over the same requests. What prompts differ in cancels within each
    pair; the error is that of the ratio's logarithm, linearised:
    tokens_i / tokens - latency_i / latency of the arm, less the same of the baseline.

    Returns:
        its interval; None where no request has ended on both.
    """

    def both(record: RequestRecord) -> tuple[float, float] | None:
        time, tokens = metrics.e2e(record), record.completion_tokens
        return None if time is None or not tokens else (float(tokens), time)

    there = {record.index: both(record) for record in baseline}
    found = [(both(record), there.get(record.index)) for record in arm]
    held = [(a, b) for a, b in found if a is not None and b is not None]
    if not held:
        return None
    series = list(zip(*((*a, *b) for a, b in held), strict=True))
    tokens, times, base_tokens, base_times = map(fmean, series)
    if min(times, base_times) <= 0:
        return None
    # Around 1, where an interval's relative width is that of the logarithm.
    error = mean_interval(
        [
            1 + t / tokens - e / times - bt / base_tokens + be / base_times
            for t, e, bt, be in zip(*series, strict=True)
        ]
    )
    value = (tokens / times) / (base_tokens / base_times)
    low, high = value * error.low / error.value, value * error.high / error.value
    interval = Interval(value, low, high, error.batches, error.reliable)
    return described(interval, len(held))


def parity(arm: Sequence[RequestRecord], baseline: Sequence[RequestRecord]) -> float | None:
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
    measured: Callable[[dict[str, Any]], Sequence[RequestRecord]],
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
            result["against"]["throughput_ratio"] = speedup(here, there)


def by_benchmark(records: Sequence[RequestRecord]) -> dict[str, list[RequestRecord]]:
    """Records by benchmark, in the order of their names."""
    groups: dict[str, list[RequestRecord]] = metrics.by_key(
        records, lambda record: record.benchmark
    )
    return groups
