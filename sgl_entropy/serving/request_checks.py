"""What a request may ask of the entropy mode and of two drafters (``custom_params``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_entropy.serving.mode import Mode


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
