"""Counters of speculation: where SGLang records, carries and shows them.

Per request they travel with the messages scheduler -> detokenizer -> tokenizer's process into
``meta_info``; per rank they show in Prometheus and in ``/get_server_info``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving import attached, mode_time
from sgl_entropy.serving.counters import RankTotals, RequestCounters
from sgl_entropy.serving.meta_info import MessageMeta, RequestMeta
from sgl_entropy.serving.outcome import outcome
from sgl_entropy.serving.prometheus import SpecMetrics
from sgl_entropy.serving.request_state import RequestState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

# One scheduler process is one rank.
TOTALS = RankTotals()
_metrics: SpecMetrics | None = None


def record_cycle(
    req: Req, emitted: int, row: list[int], draft: EagleVerifyInput, index: int
) -> None:
    """Count a verify cycle of ``req``.

    Args:
        emitted: tokens that this cycle added to the request's output.
        row: the request's row of ``accept_index``: accepted nodes, root first, then -1.
        index: the request's number in the batch.
    """
    if not ours.active():
        return
    state = attached.request_state(req)
    asked = state.asked or state.asks(req.sampling_params.custom_params, served_mode())
    cycle = attached.cycle_for(draft)
    cycle_outcome = outcome(cycle, index, row, emitted, draft.draft_token_num, asked)
    if state.counters is None:
        state.counters = RequestCounters()
    state.counters.add(cycle_outcome)
    TOTALS.counts.add(cycle_outcome)


def of_request(req: Req) -> RequestMeta | None:
    """What a request's response will say; None before its first cycle or without our flags."""
    state = attached.of(req, RequestState)
    if state is None or state.counters is None:
        return None
    return state.counters.for_response(req.finished())


def attach(per_request: Sequence[RequestMeta | None], output: Any) -> Any:
    """Let an output message carry the counts of its requests; returns the message."""
    if any(one is not None for one in per_request):
        attached.put(output, MessageMeta(tuple(per_request)))
    return output


def carry(source: Any, output: Any) -> Any:
    """Hand the counts on from one message to the next (the detokenizer); returns the message."""
    counted = attached.of(source, MessageMeta)
    if counted is not None:
        attached.put(output, counted)
    return output


def report(meta_info: dict[str, Any], message: Any, index: int) -> None:
    """Add request ``index``'s counts to its response's ``meta_info``."""
    counted = attached.of(message, MessageMeta)
    of_this = None if counted is None else counted.of_requests[index]
    if of_this is not None:
        of_this.add_to(meta_info)


def publish(state: dict[str, Any]) -> None:
    """Add this rank's counters since the start to the state that ``/get_server_info`` shows."""
    if ours.active():
        state["sgl_entropy_counters"] = TOTALS.server_info(mode_time.seconds())


def export(scheduler: Any) -> None:
    """Bring the Prometheus counters up to date (called once a decode batch)."""
    global _metrics
    if not scheduler.enable_metrics or not ours.active():
        return
    if _metrics is None:
        _metrics = SpecMetrics(dict(scheduler.metrics_collector.labels))
    _metrics.follow(TOTALS)
