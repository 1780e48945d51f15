"""Custom logit processors under speculation: each node of a draft is a row of its request.

Upstream gives a processor all nodes' rows but one set of parameters a request, so that one that
goes through its rows changes the first alone, and its exceptions end the server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.serving.trees import path_tokens, tree_parents

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

logger = logging.getLogger(__name__)

# SGLang's key of the request itself among a processor's parameters.
REQUEST = "__req__"

Params = dict[str, Any] | None


class RequestAtNode:
    """A request as if a draft's path to one node had been written; all else is the request's."""

    def __init__(self, req: Any, path: Sequence[int]) -> None:
        self._req = req
        self.output_ids = [*req.output_ids, *path]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._req, name)


def check(text: str) -> None:
    """Refuse what is no serialised processor.

    Raises:
        ValueError: the server answers it with status 400.
    """
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    try:
        CustomLogitProcessor.from_str(text)
    except Exception as problem:
        raise ValueError(
            "custom_logit_processor: expected what CustomLogitProcessor.to_str() writes "
            f"({problem!r})"
        ) from None


def applied_to_nodes(
    draft: EagleVerifyInput, batch: ScheduleBatch, info: SamplingBatchInfo, logits: torch.Tensor
) -> bool:
    """Let every processor change the logits of its requests' nodes, in place.

    Args:
        logits: [b * n, vocabulary], request by request, node by node.

    Returns:
        False: nothing was changed, upstream is to do it.
    """
    if not info.has_custom_logit_processor or not ours.active():
        return False
    nodes = draft.draft_token_num
    tokens = draft.draft_token.view(-1, nodes).tolist()
    parents = tree_parents(draft.retrive_next_token.tolist(), draft.retrive_next_sibling.tolist())
    params = [
        _at(given, path)
        for given, mine, above in zip(info.custom_params, tokens, parents, strict=True)
        for path in path_tokens(mine, above)
    ]
    _apply(info, logits, params, nodes)
    return True


def applied(info: SamplingBatchInfo, logits: torch.Tensor) -> bool:
    """The same without a draft, where each request has one row; as ``applied_to_nodes``."""
    if logits.shape[0] != len(info.custom_params) or not ours.active():
        return False
    _apply(info, logits, info.custom_params, 1)
    return True


def _at(params: Params, path: Sequence[int]) -> Params:
    if params is None or REQUEST not in params or not path:
        return params
    return params | {REQUEST: RequestAtNode(params[REQUEST], path)}


def _apply(
    info: SamplingBatchInfo, logits: torch.Tensor, params: Sequence[Params], nodes: int
) -> None:
    for processor, mask in info.custom_logit_processor.values():
        requests = mask.nonzero().flatten().tolist()
        # Together as upstream does it; one by one where a processor can do only one.
        if _changed(processor, logits, params, requests, nodes) is None:
            continue
        for request in requests:
            problem = _changed(processor, logits, params, [request], nodes)
            if problem is not None:
                _end(params[request * nodes], problem)


def _changed(
    processor: Any,
    logits: torch.Tensor,
    params: Sequence[Params],
    requests: Sequence[int],
    nodes: int,
) -> Exception | None:
    """Write what the processor makes of these requests' rows; or why it made nothing."""
    rows = [row for i in requests for row in range(i * nodes, (i + 1) * nodes)]
    try:
        # A copy: what a processor wrote before it raised is lost.
        logits[rows] = processor(logits[rows], [params[row] for row in rows])
    except Exception as problem:
        return problem
    return None


def _end(params: Params, problem: Exception) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    # ``requests.admit`` gives each request with a processor parameters, which hold the request.
    assert params is not None
    req = params[REQUEST]
    message = f"custom_logit_processor raised {problem!r}"
    logger.error("request %s: %s", req.rid, message)
    req.to_finish = FINISH_ABORT(message, HTTPStatus.BAD_REQUEST, "BadRequestError")
