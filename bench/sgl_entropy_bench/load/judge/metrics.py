"""From records to figures: latencies, rates, acceptance. Pure functions.

A failed request stays in every percentile, as slower than all that ended; a percentile that falls
among the failed is None. A mean is over the requests that ended, next to the count of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from statistics import fmean
from typing import Any

from sgl_entropy.base.intervals import Interval, mean_interval
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge.measurement import Slo

PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True)
class Distribution:
    """Statistics over requests; a percentile that falls among failed requests is None."""

    mean: float
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float
    count: int
    failed: int


@dataclass(frozen=True)
class MeanMax:
    """Statistics of a count of tokens."""

    mean: float
    max: int


@dataclass(frozen=True)
class EasdCounts:
    """Tokens that EASD checked, and those at which it rejected the draft."""

    checks: int
    fires: int


@dataclass(frozen=True)
class Goodput:
    """Requests that met every limit: their share of all, and their rate."""

    share: float
    requests_per_s: float | None


@dataclass(frozen=True)
class Figures:
    """All figures of a set of measured requests; times in seconds. None = not known.

    Attributes:
        errors, error_kinds: requests that failed, and how many of each error.
        e2e, e2e_interval: from the scheduled arrival to the end; the mean with its interval.
        e2e_from_send: from the actual send; does not show a client that is late.
        ttft, tpot, itl: to the first token, for each token after it, between events.
        lag: from the scheduled arrival to the actual send.
        request_rate, output_tokens_per_s: what was served, in a steady state.
        tau_by_benchmark, tau_by_rank: tokens a draft-verify cycle, pooled over each.
        acceptance_by_position: of draft i, given that all before it were accepted.
    """

    errors: int
    error_kinds: dict[str, int]
    e2e: Distribution | None
    e2e_interval: Interval | None
    e2e_from_send: Distribution | None
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    lag: Distribution | None
    request_rate: float | None
    output_tokens_per_s: float | None
    prompt_tokens: MeanMax | None
    completion_tokens: MeanMax | None
    cached_tokens: MeanMax | None
    tau: float | None
    tau_by_benchmark: dict[str, float] | None
    tau_by_rank: dict[str, float] | None
    acceptance_by_position: tuple[float, ...] | None
    easd: EasdCounts | None
    goodput: Goodput | None = None


def measured_of(records: Iterable[RequestRecord]) -> list[RequestRecord]:
    """Those of the measured part."""
    return [record for record in records if record.phase == "measured"]


def met(slo: Slo, record: RequestRecord) -> bool:
    """Whether a request ended well within all limits."""
    values = ((e2e(record), slo.e2e), (ttft(record), slo.ttft), (tpot(record), slo.tpot))
    return record.ok and all(
        limit is None or (value is not None and value <= limit) for value, limit in values
    )


def e2e(record: RequestRecord) -> float | None:
    """Seconds from the scheduled arrival to the end."""
    return record.last - record.scheduled if record.ok and record.last is not None else None


def e2e_from_send(record: RequestRecord) -> float | None:
    """Seconds from the actual send to the end; a client that is late does not show in it."""
    if not record.ok or record.last is None or record.sent is None:
        return None
    return record.last - record.sent


def ttft(record: RequestRecord) -> float | None:
    """Seconds from the scheduled arrival to the first token."""
    return record.first - record.scheduled if record.ok and record.first is not None else None


def tpot(record: RequestRecord) -> float | None:
    """Seconds for each token after the first."""
    if not record.ok or record.first is None or record.last is None:
        return None
    after = (record.completion_tokens or 0) - 1
    return (record.last - record.first) / after if after > 0 else None


def gaps(record: RequestRecord) -> list[float]:
    """Seconds between events with new tokens (ITL); one event may hold several with speculation."""
    times = [time for time, _ in record.chunks] if record.ok else []
    return [b - a for a, b in pairwise(times)]


def lag(record: RequestRecord) -> float | None:
    """Seconds by which a request was sent late."""
    return record.sent - record.scheduled if record.sent is not None else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of rising values, by linear interpolation. Raises ValueError for no values."""
    if not ordered:
        raise ValueError("quantile: no values")
    at = share * (len(ordered) - 1)
    low, part = int(at), at - int(at)
    if part == 0 or ordered[low] == ordered[min(low + 1, len(ordered) - 1)]:
        return ordered[low]
    return ordered[low] + part * (ordered[low + 1] - ordered[low])


def distribution(values: Iterable[float], failed: int = 0) -> Distribution | None:
    """The distribution of ``values``; None without any.

    Args:
        failed: requests without a value, which count as slower than all. A percentile that falls
            among them is None.
    """
    known = sorted(values)
    if not known:
        return None
    ranked = [*known, *([math.inf] * failed)]
    cuts = [quantile(ranked, percent / 100) for percent in PERCENTS]
    p50, p90, p95, p99 = (cut if math.isfinite(cut) else None for cut in cuts)
    return Distribution(fmean(known), p50, p90, p95, p99, known[-1], len(known), failed)


def of_all(
    records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]
) -> Distribution | None:
    """``distribution`` of one value a request; requests that failed rank as the slowest."""
    known = [v for v in map(value, records) if v is not None]
    return distribution(known, sum(not record.ok for record in records))


def interval_of(
    records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]
) -> Interval | None:
    """The mean with its interval, in the order of the schedule."""
    known = [v for v in map(value, records) if v is not None]
    return mean_interval(known) if known else None


def tau(records: Iterable[RequestRecord]) -> float | None:
    """Mean tokens a draft-verify cycle emits: pooled, tokens / cycles. None: not reported."""
    counted = [r for r in records if r.ok and r.cycles and r.emitted is not None]
    cycles = sum(r.cycles or 0 for r in counted)
    return sum(r.emitted or 0 for r in counted) / cycles if cycles else None


def by_key(
    records: Iterable[RequestRecord], key: Callable[[RequestRecord], Any]
) -> dict[Any, list[RequestRecord]]:
    """Records by ``key``, without those whose key is None."""
    out: dict[Any, list[RequestRecord]] = {}
    for record in records:
        if (name := key(record)) is not None:
            out.setdefault(name, []).append(record)
    return dict(sorted(out.items()))


def acceptance_by_position(records: Iterable[RequestRecord]) -> tuple[float, ...] | None:
    """Probability that draft i is accepted when all before it were. None: not reported."""
    counted = [r for r in records if r.ok and r.accepted and r.cycles]
    by_position = zip_longest(*(r.accepted or () for r in counted), fillvalue=0)
    counts = [sum(r.cycles or 0 for r in counted), *map(sum, by_position)]
    return tuple(b / a if a else 0.0 for a, b in pairwise(counts)) or None


def tokens_between(records: Iterable[RequestRecord], start: float, end: float) -> float:
    """Output tokens that arrived in a stretch of time. Events without a count share their
    request's tokens equally (one that broke off: as many as an event of the others holds); a
    request that was not streamed counts where it ended."""
    records = list(records)
    known = [r for r in records if r.ok and r.chunks and r.completion_tokens]
    events = sum(len(r.chunks) for r in known)
    an_event = sum(r.completion_tokens or 0 for r in known) / events if events else 1.0
    total = 0.0
    for record in records:
        whole = record.completion_tokens
        if whole is None:
            whole = round(an_event * len(record.chunks))
        if not record.chunks:
            total += whole if record.ok and start < (record.last or -1) <= end else 0
            continue
        before = 0
        for number, (time, tokens) in enumerate(record.chunks, 1):
            count = tokens if tokens is not None else whole * number // len(record.chunks)
            if start < time <= end:
                total += count - before
            before = count
    return total


def summary(records: Sequence[RequestRecord], slo: Slo | None = None) -> Figures:
    """All figures of a set of measured requests, which must not be empty."""
    scheduled = [r.scheduled for r in records]
    span = max(scheduled) - min(scheduled) if len(records) > 1 else 0.0
    # What was offered is what is served in a steady state; the drain would make it look less.
    rate = (len(records) - 1) / span if span > 0 else None
    share = len([r for r in records if r.ok]) / len(records)
    served = rate * share if rate is not None else None
    tokens = _mean_max(r.completion_tokens for r in records if r.ok)
    return Figures(
        errors=sum(not record.ok for record in records),
        error_kinds=_kinds(records),
        e2e=of_all(records, e2e),
        e2e_interval=interval_of(records, e2e),
        e2e_from_send=of_all(records, e2e_from_send),
        ttft=of_all(records, ttft) if any(r.first is not None for r in records) else None,
        tpot=distribution(v for v in map(tpot, records) if v is not None),
        itl=distribution(gap for record in records for gap in gaps(record)),
        lag=distribution(v for v in map(lag, records) if v is not None),
        request_rate=served,
        output_tokens_per_s=(
            served * tokens.mean if served is not None and tokens is not None else None
        ),
        prompt_tokens=_mean_max(r.prompt_tokens for r in records if r.ok),
        completion_tokens=tokens,
        cached_tokens=_mean_max(r.cached_tokens for r in records if r.ok),
        tau=tau(records),
        tau_by_benchmark=_taus(by_key(records, lambda r: r.benchmark)),
        tau_by_rank=_taus(by_key(records, lambda r: r.rank)),
        acceptance_by_position=acceptance_by_position(records),
        easd=_easd(records),
        goodput=None if slo is None else _goodput(records, slo, rate),
    )


def _goodput(records: Sequence[RequestRecord], slo: Slo, rate: float | None) -> Goodput:
    share = sum(met(slo, record) for record in records) / len(records)
    return Goodput(share, share * rate if rate is not None else None)


def _kinds(records: Iterable[RequestRecord]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for record in records:
        if not record.ok:
            kind = record.error or "no end"
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def _mean_max(values: Iterable[int | None]) -> MeanMax | None:
    known = [v for v in values if v is not None]
    return MeanMax(fmean(known), max(known)) if known else None


def _taus(groups: Mapping[Any, Sequence[RequestRecord]]) -> dict[str, float] | None:
    taus = {str(name): value for name, some in groups.items() if (value := tau(some)) is not None}
    return taus or None


def _easd(records: Sequence[RequestRecord]) -> EasdCounts | None:
    counted = [r for r in records if r.easd_checks is not None]
    if not counted:
        return None
    return EasdCounts(
        sum(r.easd_checks or 0 for r in counted), sum(r.easd_fires or 0 for r in counted)
    )


@dataclass(frozen=True)
class FullWindow:
    """Closed loop, all places taken: from when the first measured request was sent to when the
    last one ended."""

    seconds: float
    tokens_per_s: float


def measured_span(records: Iterable[RequestRecord]) -> tuple[float, float] | None:
    """When the first measured request was sent and the last one ended; None where that is no
    time."""
    measured = [r for r in measured_of(records) if r.sent is not None]
    start = min((r.sent for r in measured if r.sent is not None), default=0.0)
    end = max((r.last for r in measured if r.last is not None), default=start)
    return (start, end) if end > start else None


def window(records: Sequence[RequestRecord]) -> FullWindow | None:
    """Tokens a second while all places of a closed loop were taken; the tokens of all requests in
    that time count. None where no measured request ended, or in no time."""
    if (span := measured_span(records)) is None:
        return None
    start, end = span
    return FullWindow(end - start, tokens_between(records, start, end) / (end - start))


@dataclass(frozen=True)
class Capacity(Interval):
    """The rate at which an arm saturates: requests a second of all ranks, and of one."""

    qps_per_rank: float

    def interval(self) -> Interval:
        """That of all ranks."""
        return Interval(self.value, self.low, self.high, self.batches, self.reliable)


def capacity(records: Sequence[RequestRecord], ranks: int) -> Capacity | None:
    """Requests of any phase that ended well while all places were taken, as 1 / the mean time
    between ends."""
    if (span := measured_span(records)) is None:
        return None
    start, end = span
    ends = sorted(r.last for r in records if r.ok and r.last is not None and start < r.last <= end)
    between = [b - a for a, b in pairwise([start, *ends])]
    if not between or fmean(between) <= 0:
        return None
    rate = mean_interval(between).inverse()
    return Capacity(**vars(rate), qps_per_rank=rate.value / ranks)
