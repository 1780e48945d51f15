"""What a request may hold: refused here, before an exception in the scheduler ends the server.

SGLang's own checks let a negative token id, a NaN temperature or half a token to generate through
to the scheduler process, where the exception takes every running request down with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sgl_entropy.serving.mode import Mode

# name -> whether None stands for the default
_WHOLE = {"max_new_tokens": True, "min_new_tokens": False, "top_k": False, "n": False}
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)


def check_custom(given: Any, mode: Mode | None, two_drafters: bool) -> None:
    """What a request asks of the entropy mode; other keys are for custom logit processors.

    Args:
        given: the request's ``custom_params``.
        mode: the server's; None = it drafts and verifies as SGLang does.
        two_drafters: the server switches between two drafters.

    Raises:
        ValueError: what this server cannot do, or a value of a wrong kind.
    """
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ValueError(f"custom_params must be an object, found {given!r}")
    if "easd" in given:
        if mode is not None and mode.verifies:
            mode.rule.of_request(given["easd"])
        elif given["easd"] is not False:
            raise ValueError(
                "easd: this server verifies exactly; it takes --speculative-verify-mode easd"
            )
    for name in ("spec_drafters", "spec_trace"):
        if name in given and type(given[name]) is not bool:
            raise ValueError(f"{name} must be true or false, found {given[name]!r}")
    if given.get("spec_drafters") and not two_drafters:
        raise ValueError(
            "spec_drafters: this server has one drafter; it takes "
            "--speculative-second-draft-model-path"
        )
    if given.get("spec_trace") and (mode is None or not mode.chain):
        raise ValueError(
            "spec_trace: this server records no traces; they are recorded of chains "
            "(--speculative-eagle-topk 1) under --speculative-draft-stop or "
            "--speculative-verify-mode easd (where a request may set easd to false)"
        )


def check_ids(name: str, ids: Any, vocab_size: int) -> None:
    """Token ids must be whole numbers in 0..vocab_size - 1."""
    wrong = [token for token in ids if not _whole(token) or not 0 <= token < vocab_size]
    if wrong:
        raise ValueError(
            f"{name} must be whole numbers in 0..{vocab_size - 1}, found {_few(wrong)}"
        )


def check_sampling(params: Mapping[str, Any], vocab_size: int) -> None:
    """Numbers must be numbers and finite; SGLang checks their ranges itself."""
    for name, optional in _WHOLE.items():
        value = params.get(name)
        if name in params and not _whole(value) and not (optional and value is None):
            raise ValueError(f"{name} must be a whole number, found {value!r}")
    for name in _NUMBERS:
        if name in params and not _finite(params[name]):
            raise ValueError(f"{name} must be a finite number, found {params[name]!r}")
    bias = params.get("logit_bias")
    if bias is not None:
        if not isinstance(bias, Mapping):
            raise ValueError(f"logit_bias must map token ids to numbers, found {bias!r}")
        wrong = [f"{key}: {value!r}" for key, value in bias.items() if not _finite(value)]
        if wrong:
            raise ValueError(f"logit_bias must hold finite numbers, found {_few(wrong)}")
    stop = params.get("stop_token_ids")
    if stop is not None:
        if not isinstance(stop, list | tuple | set):
            raise ValueError(f"stop_token_ids must be a list of token ids, found {stop!r}")
        check_ids("stop_token_ids", stop, vocab_size)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _few(values: list[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:5])
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")
