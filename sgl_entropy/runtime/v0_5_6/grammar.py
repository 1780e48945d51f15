"""Constrained decoding: what upstream lacks on a CPU, and what must not end the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)


def mask_on_cpu(logits: torch.Tensor, bitmask: torch.Tensor) -> None:
    """Set the logits that a grammar forbids to -inf, in place (upstream: CUDA kernels alone).

    Where that leaves no token at all, one that the grammar refuses stays: nothing can be drawn
    from an empty distribution, and ``end_refused`` then ends that request and no other.

    Args:
        logits: [rows, vocabulary] float, after penalties.
        bitmask: [rows, ceil(vocabulary / 32)] int32; bit t % 32 of word t // 32 allows token t.
    """
    shifts = torch.arange(32, dtype=torch.int32)
    for row, words in zip(logits, bitmask, strict=True):
        # A grammar that has ended, or a request without one, leaves its row all ones.
        if bool((words == -1).all()):
            continue
        forbidden = (((words[:, None] >> shifts) & 1) == 0).flatten()[: row.shape[0]]
        row.masked_fill_(forbidden, float("-inf"))
        if bool(torch.isneginf(row).all()):
            row[forbidden.int().argmax()] = 0.0


def end_refused(req: Req, token: int, error: ValueError) -> None:
    """End one request whose grammar refused its own token; upstream ends the whole server.

    It happens where no token is left: every token that the grammar allows is forbidden by
    another setting (``min_new_tokens``, a logit bias) or missing from the vocabulary.
    """
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    logger.error("grammar refused token %d of request %s: %s", token, req.rid, error)
    req.finished_reason = FINISH_ABORT(
        f"the grammar allows no token that the other sampling parameters allow (got {token})"
    )
