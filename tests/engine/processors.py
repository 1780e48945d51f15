"""Custom logit processors, which the servers of the tests import by this name."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

Params = list[dict[str, Any]]


class Ban(CustomLogitProcessor):
    """Row by row, one set of parameters each, as SGLang's documentation shows it."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Any = None) -> torch.Tensor:
        assert len(custom_param_list) == len(logits)
        for row, params in zip(logits, custom_param_list, strict=True):
            row[params["ban"]] = -torch.inf
        return logits


class NeverTwice(CustomLogitProcessor):
    """Looks at the answer so far: none of its last twelve tokens comes again."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Any = None) -> torch.Tensor:
        for row, params in zip(logits, custom_param_list, strict=True):
            row[params["__req__"].output_ids[-12:]] = -torch.inf
        return logits


class Raises(CustomLogitProcessor):
    """After the given number of tokens."""

    def __call__(self, logits: torch.Tensor, custom_param_list: Any = None) -> torch.Tensor:
        for params in custom_param_list:
            if len(params["__req__"].output_ids) >= params["after"]:
                raise RuntimeError("as asked")
        return logits
