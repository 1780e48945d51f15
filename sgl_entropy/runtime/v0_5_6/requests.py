"""Requests are checked before they leave the tokenizer's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.runtime.v0_5_6.switch_args import served_switch
from sgl_entropy.serving.request_checks import check_custom, check_ids, check_sampling


def check(request: Any, input_ids: list[int] | None, vocab_size: int) -> None:
    """Refuse one request that the scheduler could not serve.

    Raises:
        ValueError: the server answers it with status 400.
    """
    if not ours.active():
        return
    if input_ids is not None:
        check_ids("input_ids", input_ids, vocab_size)
    params = request.sampling_params
    if isinstance(params, Mapping):
        check_sampling(params, vocab_size)
        check_custom(params.get("custom_params"), served_mode(), served_switch() is not None)
