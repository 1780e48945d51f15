"""Logits that are not finite end their request alone; upstream they end the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.serving import attached
from sgl_entropy.serving.attached import BrokenRows
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.draws import make_drawable
from sgl_entropy.serving.request_state import RequestState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)

REASON = "the model's logits are NaN or infinite here"


def guard_prompt(logits: torch.Tensor, info: Any) -> None:
    """Before the first token of each request is drawn: make broken rows drawable, in place.

    Args:
        logits: [b, vocabulary]; info: the batch's sampling settings, which remember the rows.
    """
    if not ours.active():
        return
    broken = make_drawable(logits)
    if broken is not None:
        attached.put(info, BrokenRows(broken))


def end_prompts(batch: ScheduleBatch) -> None:
    """End the requests whose rows ``guard_prompt`` made drawable."""
    broken = attached.take(batch.sampling_info, BrokenRows)
    if broken is None:
        return
    for req, ends in zip(batch.reqs, broken.rows, strict=False):
        if ends:
            _end(req)


def guard_draft(logits: torch.Tensor, draft: Any) -> None:
    """In verification: make broken rows drawable, in place; the draft's cycle remembers them.

    Args:
        logits: [b * nodes, vocabulary] after penalties and masks.
    """
    if not ours.active():
        return
    broken = make_drawable(logits)
    if broken is not None:
        attached.cycle_for(draft).broken = broken


def end_drafts(batch: ScheduleBatch, draft: Any, accepted: list[list[int]]) -> None:
    """End the requests that would take a token from a row that ``guard_draft`` made drawable.

    The logits after a drafted token that is not accepted say nothing about the request: the
    drafter may propose just the token that breaks them.

    Args:
        accepted: of each request, the rows of its accepted nodes, the verified token's first, then
            -1.
    """
    cycle = attached.of(draft, Cycle)
    if cycle is None or cycle.broken is None:
        return
    for req, rows in zip(batch.reqs, accepted, strict=True):
        if any(row >= 0 and cycle.broken[row] for row in rows):
            _end(req)


def sound(req: Req) -> bool:
    """Whether what a request leaves in the KV pool may serve others with the same prefix.

    NaN spreads backwards too: a kernel weighs masked keys with zero, and zero times NaN is NaN, so
    the rows before a broken token are broken in all layers but the first.
    """
    state = attached.of(req, RequestState)
    return state is None or not state.broken


def _end(req: Req) -> None:
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    logger.error("request %s: %s", req.rid, REASON)
    attached.request_state(req).broken = True
    req.to_finish = FINISH_ABORT(REASON, HTTPStatus.INTERNAL_SERVER_ERROR, "NonFiniteLogits")
