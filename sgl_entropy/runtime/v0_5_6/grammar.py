"""Constrained decoding: masks on a CPU, and a refused token ends its request, not the server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sgl_entropy.serving.grammar_mask import mask_logits as mask_on_cpu

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

__all__ = ["end_refused", "mask_on_cpu"]

logger = logging.getLogger(__name__)


def end_refused(req: Req, token: int, error: ValueError) -> None:
    """End one request whose grammar refused its own token; upstream ends the whole server.

    This happens when no token is left: every token that the grammar allows is forbidden by another
    setting (``min_new_tokens``, a logit bias) or missing from the vocabulary.
    """
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    logger.error("grammar refused token %d of request %s: %s", token, req.rid, error)
    req.finished_reason = FINISH_ABORT(
        f"the grammar allows no token that the other sampling parameters allow (got {token})"
    )
