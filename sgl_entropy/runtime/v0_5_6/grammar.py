"""Constrained decoding: masks on a CPU, and a refused token ends its request, not the server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.serving.grammar_mask import mask_logits as mask_on_cpu

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

__all__ = ["compiled", "end_refused", "mask_on_cpu"]

logger = logging.getLogger(__name__)


def compiled(compile_one: Callable[..., Any], *words: Any) -> Any:
    """What a grammar backend makes of a grammar; one that it stumbles over is an invalid one.

    Upstream expects some kinds of exception; the others end the server when the grammar is asked
    for.

    Args:
        compile_one: the backend's function; words: its arguments.
    """
    if not ours.active():
        return compile_one(*words)
    from sglang.srt.constrained.base_grammar_backend import INVALID_GRAMMAR_OBJ

    try:
        return compile_one(*words)
    except Exception as problem:
        logger.error("a grammar does not compile: %r", problem)
        return INVALID_GRAMMAR_OBJ


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
