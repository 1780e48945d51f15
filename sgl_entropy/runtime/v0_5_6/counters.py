"""Weighted counters of speculation: per request in ``meta_info``, per rank in Prometheus.

Upstream's gauges hold the mean of the last interval and cannot be added up. These count cycles,
drafted tokens, accepted tokens by position and emitted tokens, so that any pooled ratio
(acceptance length = emitted / cycles) can be formed over any requests, ranks and times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgl_entropy.runtime.v0_5_6 import easd_record, ours, regime
from sgl_entropy.serving import mode_time, switch_counters
from sgl_entropy.serving.switch_counters import SwitchCounters


@dataclass
class EasdCounters:
    """Counts of an entropy mode.

    Attributes:
        checks: positions that were checked; fires: those at which a drafted token was rejected.
        relaxed: tokens that only relaxed acceptance took.
        entropy_sum: nats, of the target at ``entropies`` emitted positions.
    """

    checks: int = 0
    fires: int = 0
    relaxed: int = 0
    entropy_sum: float = 0.0
    entropies: int = 0

    def add(self, found: dict[str, Any]) -> None:
        """Count what ``easd_record.record`` found in one cycle."""
        for name in ("checks", "fires", "relaxed", "entropy_sum", "entropies"):
            setattr(self, name, getattr(self, name) + found[name])

    @property
    def mean_entropy(self) -> float | None:
        return self.entropy_sum / self.entropies if self.entropies else None


@dataclass
class SpecCounters:
    """Counts over verify cycles; ``accepted_by_position[p]`` = cycles that accepted draft p + 1.

    ``easd`` is None, and ``trace`` empty, where no entropy mode was met; so are ``switch`` and
    ``drafters`` (what a request that asks is told of its cycles) where one drafter is served.
    """

    cycles: int = 0
    drafted: int = 0
    emitted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    easd: EasdCounters | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    switch: SwitchCounters | None = None
    drafters: list[dict[str, Any]] = field(default_factory=list)

    def add(self, emitted: int, accepted: int, drafted: int, depth: int) -> None:
        """Count one cycle of one request."""
        self.cycles += 1
        self.drafted += drafted
        self.emitted += emitted
        missing = depth - len(self.accepted_by_position)
        if missing > 0:
            self.accepted_by_position.extend([0] * missing)
        for position in range(accepted):
            self.accepted_by_position[position] += 1

    def add_easd(self, found: dict[str, Any]) -> None:
        """Count what an entropy mode found in one cycle."""
        if self.easd is None:
            self.easd = EasdCounters()
        self.easd.add(found)

    def add_drafter(self, number: int) -> None:
        """Count a cycle for the drafter that drafted it."""
        if self.switch is None:
            self.switch = SwitchCounters()
        self.switch.cycles[number] += 1

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "cycles": self.cycles,
            "drafted": self.drafted,
            "emitted": self.emitted,
            "accepted_by_position": list(self.accepted_by_position),
        }
        if self.easd is not None:
            out["easd_checks"] = self.easd.checks
            out["easd_fires"] = self.easd.fires
            out["easd_relaxed"] = self.easd.relaxed
            out["easd_target_entropy"] = self.easd.mean_entropy
        if self.switch is not None:
            out.update(self.switch.to_dict())
        return out


_EASD = ("easd_checks", "easd_fires", "easd_relaxed", "easd_target_entropy")


# One scheduler process is one rank.
TOTALS = SpecCounters()
_exported = SpecCounters()
_metrics: dict[str, Any] = {}


def record_cycle(req: Any, emitted: int, row: list[int], draft: Any, index: int) -> None:
    """Count a verify cycle of ``req``.

    Args:
        emitted: tokens that this cycle added to the request's output.
        row: the request's row of ``accept_index``: accepted nodes, root first, -1 behind them.
        draft: the batch's ``EagleVerifyInput``; the CPU engine tells how many nodes it verified.
        index: the request's number in the batch.
    """
    if not ours.active():
        return
    # A request that ends inside the draft emits fewer tokens than were accepted.
    accepted = min(emitted, accepted_nodes(row) - 1)
    counters = getattr(req, "sgl_entropy_counters", None)
    if counters is None:
        counters = req.sgl_entropy_counters = SpecCounters()
    depth = len(row) - 1
    verified = getattr(draft, "sgl_entropy_nodes", None)
    drafted = (draft.draft_token_num if verified is None else verified[index]) - 1
    counters.add(emitted, accepted, drafted, depth)
    TOTALS.add(emitted, accepted, drafted, depth)
    found = easd_record.record(draft, index, row[: accepted_nodes(row)], emitted)
    if found is not None:
        counters.add_easd(found)
        TOTALS.add_easd(found)
        if found["trace"] is not None:
            counters.trace.append(found["trace"])
    _record_drafter(req, counters, draft, index, row[: accepted_nodes(row)], emitted)


def _record_drafter(
    req: Any, counters: SpecCounters, draft: Any, index: int, path: list[int], emitted: int
) -> None:
    custom = req.sampling_params.custom_params
    asks = isinstance(custom, dict) and custom.get("spec_drafters") is True
    found = regime.record(draft, index, path, emitted, asks)
    if found is None:
        return
    number, told = found
    counters.add_drafter(number)
    TOTALS.add_drafter(number)
    if told is not None:
        counters.drafters.append(told)


def accepted_nodes(row: list[int]) -> int:
    """How many nodes a row of ``accept_index`` holds, the root included."""
    return sum(1 for node in row if node != -1)


def of_request(req: Any) -> dict[str, Any] | None:
    """The counters of a request as a dict; None before its first cycle or without our flags."""
    counters = getattr(req, "sgl_entropy_counters", None)
    if counters is None:
        return None
    out: dict[str, Any] = counters.to_dict()
    if counters.trace and req.finished():
        out["trace"] = counters.trace
    if counters.drafters and req.finished():
        out["drafters"] = counters.drafters
    return out


def attach(per_request: list[dict[str, Any] | None], output: Any) -> Any:
    """Let an output message carry the counters of its requests; returns the message."""
    if any(counters is not None for counters in per_request):
        output.sgl_entropy_counters = per_request
    return output


def carry(source: Any, output: Any) -> Any:
    """Hand the counters on from one message to the next (the detokenizer); returns the message."""
    per_request = getattr(source, "sgl_entropy_counters", None)
    if per_request is not None:
        output.sgl_entropy_counters = per_request
    return output


def report(meta_info: dict[str, Any], message: Any, index: int) -> None:
    """Add request ``index``'s counters to its response's ``meta_info``."""
    per_request = getattr(message, "sgl_entropy_counters", None)
    if per_request is None or per_request[index] is None:
        return
    counters = per_request[index]
    meta_info["spec_cycles"] = counters["cycles"]
    meta_info["spec_drafted"] = counters["drafted"]
    meta_info["spec_emitted"] = counters["emitted"]
    meta_info["spec_accepted_by_position"] = counters["accepted_by_position"]
    for name in _EASD:
        if name in counters:
            meta_info[name] = counters[name]
    if "trace" in counters:
        meta_info["spec_trace"] = counters["trace"]
    if "cycles_by_drafter" in counters:
        meta_info["spec_cycles_by_drafter"] = counters["cycles_by_drafter"]
    if "drafters" in counters:
        meta_info["spec_drafters"] = counters["drafters"]


def publish(state: dict[str, Any]) -> None:
    """Add this rank's counters since the start to the state that ``/get_server_info`` shows."""
    if ours.active():
        held = TOTALS.to_dict()
        if TOTALS.easd is not None:
            held["easd_seconds"] = round(mode_time.seconds(), 6)
        state["sgl_entropy_counters"] = held


def export(scheduler: Any) -> None:
    """Bring the Prometheus counters up to date (called once a decode batch)."""
    if not scheduler.enable_metrics or not ours.active():
        return
    labels = dict(scheduler.metrics_collector.labels)
    if not _metrics:
        _metrics.update(_create(list(labels)))
    for name in ("cycles", "drafted", "emitted"):
        now, before = getattr(TOTALS, name), getattr(_exported, name)
        if now > before:
            _metrics[name].labels(**labels).inc(now - before)
            setattr(_exported, name, now)
    _export_easd(labels)
    if TOTALS.switch is not None:
        if _exported.switch is None:
            _exported.switch = SwitchCounters()
        switch_counters.export(_metrics, labels, TOTALS.switch, _exported.switch)
    done = _exported.accepted_by_position
    done.extend([0] * (len(TOTALS.accepted_by_position) - len(done)))
    for position, now in enumerate(TOTALS.accepted_by_position):
        # Also for zero, so that a position that was never accepted shows as 0, not as absent.
        where = {**labels, "position": str(position + 1)}
        _metrics["accepted"].labels(**where).inc(now - done[position])
        done[position] = now


def _export_easd(labels: dict[str, str]) -> None:
    if TOTALS.easd is None:
        return
    if _exported.easd is None:
        _exported.easd = EasdCounters()
    for name in ("checks", "fires", "relaxed", "entropy_sum", "entropies"):
        now, before = getattr(TOTALS.easd, name), getattr(_exported.easd, name)
        # Also for zero: a mode that never fired shows as 0, not as absent.
        _metrics[name].labels(**labels).inc(max(0, now - before))
        setattr(_exported.easd, name, now)


def _create(labels: list[str]) -> dict[str, Any]:
    # Imported late: SGLang sets prometheus' multiprocess folder first.
    from prometheus_client import Counter

    return {
        **switch_counters.create(labels),
        "cycles": Counter(
            "sgl_entropy:spec_cycles", "Verify cycles, one a request and step.", labels
        ),
        "drafted": Counter("sgl_entropy:spec_drafted_tokens", "Drafted tokens verified.", labels),
        "emitted": Counter(
            "sgl_entropy:spec_emitted_tokens", "Tokens emitted by verify cycles.", labels
        ),
        "accepted": Counter(
            "sgl_entropy:spec_accepted_tokens",
            "Accepted draft tokens by position in the draft, from 1.",
            [*labels, "position"],
        ),
        "checks": Counter("sgl_entropy:easd_checks", "Positions that EASD checked.", labels),
        "fires": Counter("sgl_entropy:easd_fires", "Drafted tokens that EASD rejected.", labels),
        "relaxed": Counter(
            "sgl_entropy:easd_relaxed_tokens",
            "Drafted tokens that only relaxed acceptance took.",
            labels,
        ),
        "entropy_sum": Counter(
            "sgl_entropy:easd_target_entropy_nats",
            "The target's entropy, summed over emitted positions.",
            labels,
        ),
        "entropies": Counter(
            "sgl_entropy:easd_target_entropy_positions", "Positions in that sum.", labels
        ),
    }
