"""From a trained drafter to the published checkpoint layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.files import SINGLE_NAME
from sgl_entropy.checkpoint.raw_config import read_raw_config
from sgl_entropy.checkpoint.staging import staged_folder
from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.drafter.model import Drafter


def fold_tap_scale(fc: Tensor, scale: Tensor) -> Tensor:
    """``fc`` [d, taps * d] such that fold(fc) @ h == fc @ (h / scale)."""
    return fc / scale


def export_drafter(
    drafter: Drafter, tap_scale: Tensor, out: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``out`` with tap scales folded into
    ``fc``: both files or none. A drafter that is there already is replaced.

    Raises:
        DrafterError: ``out`` holds something other than a drafter, or the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in drafter.state_dict().items():
        if name == "fc.weight":
            value = fold_tap_scale(value, tap_scale)
        tensors[name] = (value.to(dtype) if value.is_floating_point() else value).contiguous()
    refuse_others(out)
    with staged_folder(out, overwrite=True) as stage:
        try:
            save_file(tensors, stage / SINGLE_NAME, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from None
        name = str(dtype).removeprefix("torch.")
        text = json.dumps(drafter.config.to_dict(torch_dtype=name), indent=2)
        (stage / "config.json").write_text(text + "\n", encoding="utf-8")


def refuse_others(out: Path) -> None:
    """
    Raises:
        DrafterError: ``out`` holds something other than a drafter: a target has a config.json, too.
    """
    if (out / "config.json").is_file():
        try:
            DrafterConfig.from_dict(read_raw_config(out))
        except DrafterError as error:
            raise DrafterError(
                f"{out}: holds something other than a drafter ({error}); it is not replaced, "
                f"choose another destination"
            ) from None
