"""Routes that write weights while serving: none ends the server, none leaves a packed copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.runtime.v0_5_6.cpu import gemm

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

logger = logging.getLogger(__name__)

# The worker's function for each kind of request.
_UPDATES = {
    "UpdateWeightFromDiskReqInput": "update_weights_from_disk",
    "UpdateWeightsFromDistributedReqInput": "update_weights_from_distributed",
    "UpdateWeightsFromTensorReqInput": "update_weights_from_tensor",
    "UpdateWeightsFromIPCReqInput": "update_weights_from_ipc",
}


def write(scheduler: Scheduler, request: Any) -> tuple[bool, str]:
    """Update weights as the request asks; an exception on the way becomes a refusal.

    A folder may have failed in the middle: the one that is served is then read again.

    Args:
        scheduler: SGLang's. Tensors go to the drafter's worker, which knows both models.
        request: the route's.

    Returns:
        Whether the weights were written, and why not.
    """
    name = _UPDATES[type(request).__name__]
    from_tensor = name == "update_weights_from_tensor"
    worker = (from_tensor and scheduler.draft_worker) or scheduler.tp_worker
    update: Callable[[Any], tuple[bool, str]] = getattr(worker, name)
    if not ours.active():
        return update(request)
    try:
        return update(request)
    except Exception as problem:
        logger.exception("weights are not updated")
        message = f"expected weights that this model can take ({type(problem).__name__}: {problem})"
        if name == "update_weights_from_disk":
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
