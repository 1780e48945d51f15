"""Routes that write weights while serving: none ends the server, none leaves a packed copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.runtime.v0_5_6.cpu import gemm

logger = logging.getLogger(__name__)

Update = Callable[[Any], tuple[bool, str]]


def written(update: Update, request: Any) -> tuple[bool, str]:
    """What SGLang's ``update`` returns; its exception becomes a refusal.

    Args:
        update: the worker's function. One that reads a folder is asked once more, for the folder
            that is served, as it may have failed in the middle.
        request: the route's.
    """
    if not ours.active():
        return update(request)
    try:
        return update(request)
    except Exception as problem:
        logger.exception("weights are not updated")
        message = f"expected weights that this model can take ({type(problem).__name__}: {problem})"
        if hasattr(request, "model_path"):
            update(_served(request))
        return False, message
    finally:
        gemm.weights_changed()


def _served(request: Any) -> Any:
    from sglang.srt.server_args import get_global_server_args

    args = get_global_server_args()
    again = copy.copy(request)
    again.model_path, again.load_format = args.model_path, args.load_format
    return again
