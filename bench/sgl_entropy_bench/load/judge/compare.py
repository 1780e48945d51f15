"""Two arms side by side: the same requests, paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from sgl_entropy.base.intervals import Interval, mean_interval, ratio_interval
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge import metrics

V = TypeVar("V")
Time = Callable[[RequestRecord], float | None]
Records = Sequence[RequestRecord]


@dataclass(frozen=True)
class PairedRatio(Interval):
    """A ratio of two arms with its interval.

    Attributes:
        pairs: requests that ended on both.
        differs: the interval can be trusted and excludes 1.
    """

    pairs: int
    differs: bool

    @classmethod
    def of(cls, ratio: Interval, pairs: int) -> PairedRatio:
        return cls(**vars(ratio), pairs=pairs, differs=ratio.reliable and not ratio.contains(1.0))


@dataclass(frozen=True)
class AgainstBaseline:
    """How a result stands beside that of the baseline ``arm`` at the same load.

    Attributes:
        e2e_ratio, ttft_ratio: of mean latencies, this arm over the baseline.
        equal_outputs: share of requests with the same text on both; None where none is expected.
        throughput_ratio: closed loop: tokens a second, this arm over the baseline.
    """

    arm: str
    e2e_ratio: PairedRatio | None
    ttft_ratio: PairedRatio | None
    equal_outputs: float | None
    throughput_ratio: PairedRatio | None = None


@dataclass(frozen=True)
class BenchmarkSpeed:
    """One request at a time: speed-up in tokens a second over the baseline, and tau."""

    speedup: PairedRatio | None
    tau: float | None


def matched(
    arm: Records, baseline: Records, value: Callable[[RequestRecord], V | None]
) -> list[tuple[V, V]]:
    """(arm's, baseline's) values of the requests that have one on both, by schedule."""
    there = {record.index: value(record) for record in baseline}
    both = ((value(record), there.get(record.index)) for record in arm)
    return [(a, b) for a, b in both if a is not None and b is not None]


def paired(arm: Records, baseline: Records, value: Time = metrics.e2e) -> PairedRatio | None:
    """The ratio of means with its interval, arm over baseline; None without pairs."""
    both = matched(arm, baseline, value)
    if not both or fmean(b for _, b in both) == 0:
        return None
    return PairedRatio.of(ratio_interval([a for a, _ in both], [b for _, b in both]), len(both))


def speedup(arm: Records, baseline: Records, time: Time = metrics.e2e) -> PairedRatio | None:
    """Tokens a second of an arm over the baseline's, of a closed loop, paired by request.

    With every place taken, tokens/s are places * mean tokens / mean latency (Little's law), so the
    ratio is one of four means over the same requests. What prompts differ in cancels within each
    pair; the error is that of the ratio's logarithm, linearised:
    tokens_i / tokens - latency_i / latency of the arm, less the same of the baseline.

    Returns:
        its interval; None where no request has ended on both.
    """

    def tokens_and_time(record: RequestRecord) -> tuple[float, float] | None:
        seconds, tokens = time(record), record.completion_tokens
        return None if seconds is None or not tokens else (float(tokens), seconds)

    both = matched(arm, baseline, tokens_and_time)
    if not both:
        return None
    series = list(zip(*((*a, *b) for a, b in both), strict=True))
    tokens, times, base_tokens, base_times = map(fmean, series)
    if min(times, base_times) <= 0:
        return None
    # Around 1, where the relative width of an interval is that of the logarithm.
    error = mean_interval(
        [
            1 + t / tokens - e / times - bt / base_tokens + be / base_times
            for t, e, bt, be in zip(*series, strict=True)
        ]
    )
    ratio = (tokens / times) / (base_tokens / base_times)
    return PairedRatio.of(error.scaled(ratio / error.value), len(both))


def benchmark_speed(arm: Records, baseline: Records) -> BenchmarkSpeed:
    """One request at a time, timed from the send."""
    return BenchmarkSpeed(speedup(arm, baseline, metrics.e2e_from_send), metrics.tau(arm))


def parity(arm: Records, baseline: Records) -> float | None:
    """Share of requests with the same text on both; None where none has text on both."""
    both = matched(arm, baseline, lambda record: (record.ok and record.text_hash) or None)
    return sum(a == b for a, b in both) / len(both) if both else None


def by_benchmark(records: Records) -> dict[str, list[RequestRecord]]:
    """Records by benchmark, in the order of their names."""
    groups: dict[str, list[RequestRecord]] = metrics.by_key(records, lambda r: r.benchmark)
    return groups
