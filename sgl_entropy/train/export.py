"""From a trained drafter to the published checkpoint layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from sgl_entropy.drafter.model import Drafter


def fold_tap_scale(fc: Tensor, scale: Tensor) -> Tensor:
    """``fc`` [d, taps * d] such that fold(fc) @ h == fc @ (h / scale)."""
    return fc / scale


def export_drafter(
    drafter: Drafter, tap_scale: Tensor, out: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``out``, tap scales folded away."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in drafter.state_dict().items():
        if name == "fc.weight":
            value = fold_tap_scale(value, tap_scale)
        tensors[name] = (value.to(dtype) if value.is_floating_point() else value).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    name = str(dtype).removeprefix("torch.")
    text = json.dumps(drafter.config.to_dict(torch_dtype=name), indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
