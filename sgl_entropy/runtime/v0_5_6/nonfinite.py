"""Logits that are no numbers end their request and no other; upstream's server ends with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.serving.draws import make_drawable

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)

_MARK = "sgl_entropy_broken"
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
        setattr(info, _MARK, broken)


def end_prompts(batch: ScheduleBatch) -> None:
    """End the requests whose rows ``guard_prompt`` found broken."""
    for req, broken in zip(batch.reqs, batch.sampling_info.__dict__.pop(_MARK, ()), strict=False):
        if broken:
            _end(req)


def guard_draft(logits: torch.Tensor, draft: Any) -> None:
    """In verification: make broken rows drawable, in place; ``draft`` remembers them.

    Args:
        logits: [b * nodes, vocabulary] after penalties and masks.
    """
    if not ours.active():
        return
    broken = make_drawable(logits)
    if broken is not None:
        setattr(draft, _MARK, broken)


def end_drafts(batch: ScheduleBatch, draft: Any, accepted: list[list[int]]) -> None:
    """End the requests that would take a token from a row that ``guard_draft`` found broken.

    A drafted token that is not accepted says nothing of its request, whatever the target makes of
    it: the drafter may propose just the token that breaks the logits behind it.

    Args:
        accepted: of each request, the rows of its accepted nodes, the verified token's first; -1
            behind them.
    """
    broken = draft.__dict__.pop(_MARK, None)
    if broken is None:
        return
    for req, rows in zip(batch.reqs, accepted, strict=True):
        if any(row >= 0 and broken[row] for row in rows):
            _end(req)


def sound(req: Req) -> bool:
    """Whether what a request leaves in the KV pool may serve others with the same prefix.

    NaN spreads backwards too: a kernel weighs masked keys with zero, and zero times NaN is NaN, so
    that the rows before a broken token are broken in all layers but the first.
    """
    return not getattr(req, _MARK, False)


def _end(req: Req) -> None:
    from http import HTTPStatus

    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    logger.error("request %s: %s", req.rid, REASON)
    setattr(req, _MARK, True)
    req.to_finish = FINISH_ABORT(REASON, HTTPStatus.INTERNAL_SERVER_ERROR, "NonFiniteLogits")
