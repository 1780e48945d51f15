"""Logits that are no numbers end their request and no other; upstream's server ends with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6 import ours

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)

_MARK = "sgl_entropy_broken"
REASON = "the model's logits are NaN or infinite here"


def broken_rows(logits: torch.Tensor) -> torch.Tensor:
    """[rows] bool: NaN or +inf somewhere, or nothing but -inf; -inf alone is a mask.

    One pass: the maximum of a row is a finite number exactly where it is sound.
    """
    return ~torch.isfinite(logits.amax(-1))


def guard_prompt(logits: torch.Tensor, info: Any) -> None:
    """Before the first token of each request is drawn: make broken rows drawable, in place.

    Args:
        logits: [b, vocabulary]; info: the batch's sampling settings, which remember the rows.
    """
    if not ours.active():
        return
    broken = broken_rows(logits)
    if bool(broken.any()):
        logits[broken] = 0.0
        setattr(info, _MARK, broken.tolist())


def end_prompts(batch: ScheduleBatch) -> None:
    """End the requests whose rows ``guard_prompt`` found broken."""
    for req, broken in zip(batch.reqs, batch.sampling_info.__dict__.pop(_MARK, ()), strict=False):
        if broken:
            _end(req)


def guard_draft(logits: torch.Tensor, batch: ScheduleBatch, draft: Any) -> None:
    """In verification: make broken rows drawable, in place, and end their requests.

    Args:
        logits: [b * nodes, vocabulary] after penalties and masks.
    """
    if not ours.active():
        return
    broken = broken_rows(logits)
    if not bool(broken.any()):
        return
    logits[broken] = 0.0
    live = draft.retrive_index >= 0
    hit = (broken.view_as(live) & live).any(1).tolist()
    for req, ends in zip(batch.reqs, hit, strict=True):
        if ends:
            _end(req)


def _end(req: Req) -> None:
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    logger.error("request %s: %s", req.rid, REASON)
    req.to_finish = FINISH_ABORT(REASON, HTTPStatus.INTERNAL_SERVER_ERROR, "NonFiniteLogits")
