"""Weighted counters of speculation: per request in ``meta_info``, per rank in Prometheus.

Upstream's gauges hold the mean of the last interval and cannot be added up. These count cycles,
drafted tokens, accepted tokens by position and emitted tokens, so that any pooled ratio
(acceptance length = emitted / cycles) can be formed over any requests, ranks and times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours


@dataclass
class SpecCounters:
    """Counts over verify cycles; ``accepted_by_position[p]`` = cycles that accepted draft p + 1."""

    cycles: int = 0
    drafted: int = 0
    emitted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)

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

    def to_dict(self) -> dict[str, Any]:
        return {
            "cycles": self.cycles,
            "drafted": self.drafted,
            "emitted": self.emitted,
            "accepted_by_position": list(self.accepted_by_position),
        }


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
    accepted = min(emitted, sum(1 for node in row if node != -1) - 1)
    counters = getattr(req, "sgl_entropy_counters", None)
    if counters is None:
        counters = req.sgl_entropy_counters = SpecCounters()
    depth = len(row) - 1
    verified = getattr(draft, "sgl_entropy_nodes", None)
    drafted = (draft.draft_token_num if verified is None else verified[index]) - 1
    counters.add(emitted, accepted, drafted, depth)
    TOTALS.add(emitted, accepted, drafted, depth)


def of_request(req: Any) -> dict[str, Any] | None:
    """The counters of a request as a dict; None before its first cycle or without our flags."""
    counters = getattr(req, "sgl_entropy_counters", None)
    return None if counters is None else counters.to_dict()


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


def publish(state: dict[str, Any]) -> None:
    """Add this rank's counters since the start to the state that ``/get_server_info`` shows."""
    if ours.active():
        state["sgl_entropy_counters"] = TOTALS.to_dict()


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
    done = _exported.accepted_by_position
    done.extend([0] * (len(TOTALS.accepted_by_position) - len(done)))
    for position, now in enumerate(TOTALS.accepted_by_position):
        # Also for zero, so that a position that was never accepted shows as 0, not as absent.
        where = {**labels, "position": str(position + 1)}
        _metrics["accepted"].labels(**where).inc(now - done[position])
        done[position] = now


def _create(labels: list[str]) -> dict[str, Any]:
    # Imported late: SGLang sets prometheus' multiprocess folder first.
    from prometheus_client import Counter

    return {
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
    }
