"""Whether a measurement is valid, and every reason why it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sgl_entropy.base.intervals import LEAST_CORRELATION, batch_means, lag_one, t_quantile
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge.measurement import Measurement
from sgl_entropy_bench.load.judge.metrics import by_key, e2e, lag, measured_of, quantile

RATE_OFF = 0.01
LAG_P99_S = 0.010
LAG_SHARE = 0.01
CPU_SHARE = 0.80
DRIFT = 0.25
# With a smaller share of requests sent while all clients were sending, no load was shared.
SHARED = 0.8
NO_CAPACITY = "its load is a share of a capacity that is not valid"
_BATCHES = 10


@dataclass(frozen=True)
class Verdict:
    """Whether a measurement is valid; ``reasons`` why it is not, ``notes`` that limit what it
    says."""

    valid: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verdict(measurement: Measurement, records: Sequence[RequestRecord]) -> Verdict:
    """Judge one measurement by all its records, in the order of the schedule."""
    measured = measured_of(records)
    # Another of several clients may have sent the same prompt at the same time.
    first_use = first_uses(records) if measurement.clients is None else lone_uses(records)
    reasons, expected = [], measurement.expected
    if len(measured) < expected:
        reasons.append(f"partial: {len(measured)} of {expected} measured requests ended")
    failed = sum(not record.ok for record in measured)
    if failed:
        reasons.append(f"{failed} of {len(measured)} requests failed")
    if measurement.open_loop:
        reasons += _late(measured)
    busiest = max(measurement.client_cpu, default=0.0)
    if busiest > CPU_SHARE:
        reasons.append(f"a client process used {busiest:.0%} of a core: give it more --processes")
    reasons += _unexplained_hits(measured, first_use)
    if (change := drift(measured)) is not None:
        reasons.append(
            f"drift: mean latency {'rose' if change > 0 else 'fell'} by {abs(change):.0%} "
            f"within the measured part"
        )
    shared = measurement.shared_share
    if shared is not None and shared < SHARED:
        reasons.append(
            f"only {shared:.0%} of the measured requests came while all clients were sending: "
            "start them together"
        )
    if measurement.capacity_valid is False:
        reasons.append(NO_CAPACITY)
    notes = _repeats(measured, first_use)
    if not measurement.cache_emptied:
        notes.append("the prefix cache could not be emptied")
    return Verdict(not reasons, tuple(reasons), tuple(notes))


def first_uses(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The first request of each prompt, in the order of ``records``."""
    first: dict[str, RequestRecord] = {}
    for record in records:
        first.setdefault(record.prompt, record)
    return list(first.values())


def lone_uses(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Requests whose prompt no client had sent before, nor another one while it ran."""
    by_prompt = by_key(records, lambda r: r.prompt if r.sent is not None else None)
    lone = []
    for same in by_prompt.values():
        first, *others = sorted(same, key=lambda r: r.sent or 0.0)
        if first.last is not None and all((r.sent or 0) >= first.last for r in others):
            lone.append(first)
    return lone


def rates(measured: Sequence[RequestRecord]) -> tuple[float | None, float | None]:
    """(requests a second of the schedule, of what was sent) over the measured part."""
    sent = sorted(record.sent for record in measured if record.sent is not None)
    scheduled = sorted(record.scheduled for record in measured)
    return _rate(scheduled), _rate(sent)


def _rate(times: Sequence[float]) -> float | None:
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    return (len(times) - 1) / span if span > 0 else None


def _late(measured: Sequence[RequestRecord]) -> list[str]:
    reasons = []
    scheduled, sent = rates(measured)
    if scheduled and sent and abs(sent / scheduled - 1) > RATE_OFF:
        reasons.append(f"{sent:.3f} requests a second were sent, {scheduled:.3f} were scheduled")
    lags = sorted(value for value in map(lag, measured) if value is not None)
    latencies = sorted(value for value in map(e2e, measured) if value is not None)
    if lags and latencies:
        worst = quantile(lags, 0.99)
        allowed = max(LAG_P99_S, LAG_SHARE * quantile(latencies, 0.5))
        if worst > allowed:
            reasons.append(
                f"p99 of the lag between schedule and send is {worst * 1e3:.1f} ms, "
                f"{allowed * 1e3:.1f} ms are allowed"
            )
    return reasons


def _unexplained_hits(
    measured: Sequence[RequestRecord], first_use: Sequence[RequestRecord]
) -> list[str]:
    """Prefix-cache hits that a new prompt cannot have. It shares the common head of all prompts,
    which is no longer than the shortest of them, and perhaps its first words with another prompt:
    less than half of it."""
    lengths = [r.prompt_tokens for r in measured if r.prompt_tokens]
    if not lengths:
        return []
    most = min(lengths)
    wrong = [r for r in first_use if (r.cached_tokens or 0) > max(most, (r.prompt_tokens or 0) / 2)]
    if len(wrong) <= len(first_use) // 100:
        return []
    return [
        f"{len(wrong)} of {len(first_use)} prompts were found in the server's prefix cache when "
        f"they were sent for the first time: it was not empty, or is shared"
    ]


def _repeats(measured: Sequence[RequestRecord], first_use: Sequence[RequestRecord]) -> list[str]:
    """How much of the run the prefix cache may have served."""
    new = {record.index for record in first_use}
    repeated = sum(record.index not in new for record in measured)
    if not repeated or not first_use:
        return []
    prompts = sum(r.prompt_tokens or 0 for r in measured)
    cached = sum(r.cached_tokens or 0 for r in measured)
    share = f"; {cached / prompts:.0%} of the prompt tokens were cached" if prompts else ""
    return [f"{repeated} of {len(measured)} requests repeat an earlier prompt{share}"]


def drift(measured: Sequence[RequestRecord]) -> float | None:
    """Relative change of the latency over the measured part where it is large and significant
    (a line through batch means, 0.1 % level, its error widened by what correlation is left between
    batches as in ``base.intervals``); None = steady."""
    values = [v for v in map(e2e, measured) if v is not None]
    if len(values) < 4 * _BATCHES:
        return None
    means = batch_means(values, _BATCHES)
    centre, mean = (_BATCHES - 1) / 2, fmean(means)
    spread = sum((i - centre) ** 2 for i in range(_BATCHES))
    slope = sum((i - centre) * (m - mean) for i, m in enumerate(means)) / spread
    left = [m - mean - slope * (i - centre) for i, m in enumerate(means)]
    correlation = min(max(lag_one(left), LEAST_CORRELATION), 0.9)
    wider = (1 + correlation) / (1 - correlation)
    error = math.sqrt(sum(v**2 for v in left) / (_BATCHES - 2) / spread * wider)
    change = slope * (_BATCHES - 1) / mean if mean else 0.0
    significant = error == 0 or abs(slope / error) > t_quantile(0.9995, _BATCHES - 2)
    return change if significant and abs(change) > DRIFT else None
