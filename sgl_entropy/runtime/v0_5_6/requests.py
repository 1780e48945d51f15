"""Requests are checked as they are made, before they leave the process of the HTTP server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours, processors
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.runtime.v0_5_6.switch_args import served_switch
from sgl_entropy.serving.request_checks import check_custom
from sgl_entropy.serving.request_schema import (
    Logging,
    Request,
    Served,
    check_ids,
    check_logging,
    check_request,
)


def served(args: Any) -> Served:
    """What the requests of a server with these ``ServerArgs`` are compared with."""
    model = args.get_model_config()
    return Served(
        model.vocab_size,
        model.hidden_size,
        args.dp_size,
        tokenizer=not args.skip_tokenizer_init,
        multimodal=model.is_multimodal,
        speculates=args.speculative_algorithm is not None,
    )


def admit(request: Any) -> None:
    """Refuse a request that the scheduler could not serve.

    Args:
        request: SGLang's ``GenerateReqInput`` as a route made it; a batch's parts are seen twice.

    Raises:
        ValueError: every route answers it with status 400, streaming or not.
    """
    args = _serving()
    if args is None:
        return
    check_request({name: getattr(request, name) for name in Request.model_fields}, served(args))
    params = request.sampling_params or {}
    for one in params if isinstance(params, list) else [params]:
        check_custom(one.get("custom_params"), served_mode(), served_switch() is not None)
        if request.custom_logit_processor and one.get("custom_params") is None:
            # SGLang puts the request itself there, where its processor finds it.
            one["custom_params"] = {}


def _serving() -> Any:
    """The ``ServerArgs`` of a process that serves under our flags.

    None = upstream's own checks: also where a program makes requests to send them elsewhere.
    """
    from sglang.srt.server_args import get_global_server_args

    try:
        args = get_global_server_args()
    except ValueError:
        return None
    return args if ours.active() else None


def admit_logging(request: Any) -> None:
    """The same for SGLang's ``ConfigureLoggingReq``."""
    if _serving() is not None:
        check_logging({name: getattr(request, name) for name in Logging.model_fields})


def admit_tokens(tokens: list[Any], args: Any) -> None:
    """The same for the ids of ``/detokenize``: a list, or a list of lists."""
    if ours.active():
        for ids in tokens if tokens and isinstance(tokens[0], list) else [tokens]:
            if all(isinstance(token, int) for token in ids):
                check_ids("tokens", ids, args.get_model_config().vocab_size)


def check(request: Any, running: Mapping[str, Any], input_ids: list[int] | None, args: Any) -> None:
    """Refuse a name that another request has, whose answer it would take, and unknown tokens.

    Args:
        request: one alone.
        running: requests of this process by name.
        input_ids: as the tokenizer made them.
        args: SGLang's ``ServerArgs``.

    Raises:
        ValueError: the server answers it with status 400.
    """
    if not ours.active():
        return
    if not isinstance(request.rid, str):
        raise ValueError(f"rid: expected a name, found {request.rid!r:.60}")
    if request.rid in running:
        raise ValueError(
            f"rid: expected a name of its own, found {request.rid!r}, which is being answered"
        )
    if input_ids is not None:
        check_ids("input_ids", input_ids, args.get_model_config().vocab_size)
    processor = getattr(request, "custom_logit_processor", None)
    if processor and args.enable_custom_logit_processor:
        processors.check(processor)
