"""From records to figures: latencies, rates, acceptance. Pure functions.

A request that failed never vanishes: in a percentile it counts as slower than all that ended, so
that a percentile may be "failed" (infinite); a mean is over those that ended, beside the count of
those that did not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge.intervals import Interval, mean_interval

PERCENTS = (50, 90, 95, 99)


@dataclass(frozen=True)
class Slo:
    """Limits of one request, in seconds; None = none."""

    e2e: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """``e2e=10,ttft=0.5``. Raises ValueError for another form."""
        given: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = 0.0
            if name not in ("e2e", "ttft", "tpot") or not seconds > 0:
                raise ValueError(
                    f"--slo {text}: expected e2e=SECONDS, ttft= or tpot=, separated by commas"
                )
            given[name] = seconds
        return cls(**given)

    def __str__(self) -> str:
        held = {"e2e": self.e2e, "ttft": self.ttft, "tpot": self.tpot}
        return ", ".join(f"{k} <= {v:g} s" for k, v in held.items() if v is not None)

    def met(self, record: RequestRecord) -> bool:
        """Whether a request ended well within all limits."""
        values = {"e2e": e2e(record), "ttft": ttft(record), "tpot": tpot(record)}
        limits = {"e2e": self.e2e, "ttft": self.ttft, "tpot": self.tpot}
        return record.ok and all(
            limit is None or (values[name] is not None and values[name] <= limit)  # type: ignore[operator]
            for name, limit in limits.items()
        )


def e2e(record: RequestRecord) -> float | None:
    """Seconds from the scheduled arrival to the end."""
    return record.last - record.scheduled if record.ok and record.last is not None else None


def e2e_from_send(record: RequestRecord) -> float | None:
    """Seconds from the actual send to the end: blind to a client that is late."""
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
    """Seconds between events with new tokens (ITL): with speculation, one event may hold some."""
    times = [time for time, _ in record.chunks] if record.ok else []
    return [b - a for a, b in pairwise(times)]


def lag(record: RequestRecord) -> float | None:
    """Seconds by which a request was sent late."""
    return record.sent - record.scheduled if record.sent is not None else None


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of rising values, by linear interpolation. Raises ValueError for none."""
    if not ordered:
        raise ValueError("quantile: no values")
    at = share * (len(ordered) - 1)
    low, part = int(at), at - int(at)
    if part == 0 or ordered[low] == ordered[min(low + 1, len(ordered) - 1)]:
        return ordered[low]
    return ordered[low] + part * (ordered[low + 1] - ordered[low])


def distribution(values: Iterable[float], failed: int = 0) -> dict[str, Any] | None:
    """mean, p50, p90, p95, p99, max and count; None without values.

    Args:
        failed: requests without a value, which count as slower than all. A percentile that falls
            among them is None.
    """
    known = sorted(values)
    if not known:
        return None
    ranked = [*known, *([math.inf] * failed)]
    out: dict[str, Any] = {"mean": fmean(known)}
    for percent in PERCENTS:
        found = quantile(ranked, percent / 100)
        out[f"p{percent}"] = found if math.isfinite(found) else None
    return out | {"max": known[-1], "count": len(known), "failed": failed}


def of_all(
    records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]
) -> dict[str, Any] | None:
    """``distribution`` of one value a request; requests that failed rank as the slowest."""
    found = [v for v in map(value, records) if v is not None]
    return distribution(found, sum(not record.ok for record in records))


def interval_of(
    records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]
) -> Interval | None:
    """The mean with its interval, in the order of the schedule."""
    found = [v for v in map(value, records) if v is not None]
    return mean_interval(found) if found else None


def tau(records: Iterable[RequestRecord]) -> float | None:
    """Mean tokens a draft-verify cycle emits: pooled, tokens / cycles. None: not reported."""
    counted = [r for r in records if r.ok and r.cycles and r.emitted is not None]
    cycles = sum(r.cycles or 0 for r in counted)
    return sum(r.emitted or 0 for r in counted) / cycles if cycles else None


def by_key(
    records: Iterable[RequestRecord], key: Callable[[RequestRecord], Any]
) -> dict[Any, list[RequestRecord]]:
    """Records by some property, those without it left out."""
    out: dict[Any, list[RequestRecord]] = {}
    for record in records:
        if (name := key(record)) is not None:
            out.setdefault(name, []).append(record)
    return dict(sorted(out.items()))


def acceptance_by_position(records: Iterable[RequestRecord]) -> list[float] | None:
    """Probability that draft i is accepted when all before it were. None: not reported."""
    depth, cycles, accepted = 0, 0, [0] * 64
    for record in records:
        if record.ok and record.accepted and record.cycles:
            depth = max(depth, len(record.accepted))
            cycles += record.cycles
            for i, count in enumerate(record.accepted):
                accepted[i] += count
    if not depth:
        return None
    before = [cycles, *accepted]
    return [accepted[i] / before[i] if before[i] else 0.0 for i in range(depth)]


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


def summary(records: Sequence[RequestRecord], slo: Slo | None = None) -> dict[str, Any]:
    """All figures of a set of measured requests, as JSON takes them; times in seconds."""
    scheduled = [r.scheduled for r in records]
    span = max(scheduled) - min(scheduled) if len(records) > 1 else 0.0
    # What was offered is what is served in a steady state; the drain would make it look less.
    rate = (len(records) - 1) / span if span > 0 else None
    share = len([r for r in records if r.ok]) / len(records)
    served = rate * share if rate is not None else None
    tokens = _mean_max(r.completion_tokens for r in records if r.ok)
    interval = interval_of(records, e2e)
    out: dict[str, Any] = {
        "requests": len(records),
        "errors": sum(not record.ok for record in records),
        "error_kinds": _kinds(records),
        "e2e": of_all(records, e2e),
        "e2e_interval": as_json(interval),
        "e2e_from_send": of_all(records, e2e_from_send),
        "ttft": of_all(records, ttft) if any(r.first is not None for r in records) else None,
        "tpot": distribution(v for v in map(tpot, records) if v is not None),
        "itl": distribution(gap for record in records for gap in gaps(record)),
        "lag": distribution(v for v in map(lag, records) if v is not None),
        "request_rate": served,
        "output_tokens_per_s": (
            served * tokens["mean"] if served is not None and tokens is not None else None
        ),
        "scheduled_span_s": span,
        "prompt_tokens": _mean_max(r.prompt_tokens for r in records if r.ok),
        "completion_tokens": tokens,
        "cached_tokens": _mean_max(r.cached_tokens for r in records if r.ok),
        "tau": tau(records),
        "tau_by_benchmark": _taus(by_key(records, lambda r: r.benchmark)),
        "tau_by_rank": _taus(by_key(records, lambda r: r.rank)),
        "acceptance_by_position": acceptance_by_position(records),
        "easd": _easd(records),
    }
    if slo is not None:
        good = sum(slo.met(record) for record in records)
        out["goodput"] = {
            "slo": str(slo),
            "share": good / len(records),
            "requests_per_s": good / len(records) * rate if rate is not None else None,
        }
    return out


def as_json(interval: Interval | None) -> dict[str, Any] | None:
    """An interval for a result file; ends that are not finite are None."""
    if interval is None:
        return None
    low, high = (v if math.isfinite(v) else None for v in (interval.low, interval.high))
    return {
        "value": interval.value,
        "low": low,
        "high": high,
        "batches": interval.batches,
        "reliable": interval.reliable,
    }


def _kinds(records: Iterable[RequestRecord]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for record in records:
        if not record.ok:
            kind = record.error or "no end"
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def _mean_max(values: Iterable[int | None]) -> dict[str, float] | None:
    known = [v for v in values if v is not None]
    return {"mean": fmean(known), "max": max(known)} if known else None


def _taus(groups: Mapping[Any, Sequence[RequestRecord]]) -> dict[str, float] | None:
    found = {str(name): value for name, held in groups.items() if (value := tau(held)) is not None}
    return found or None


def _easd(records: Sequence[RequestRecord]) -> dict[str, int] | None:
    counted = [r for r in records if r.easd_checks is not None]
    if not counted:
        return None
    return {
        "checks": sum(r.easd_checks or 0 for r in counted),
        "fires": sum(r.easd_fires or 0 for r in counted),
    }
