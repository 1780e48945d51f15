"""Linear layers on the CPU engine: weights packed once, so that a few rows cost as much as one.

A verification multiplies each weight with a handful of rows. The plain BLAS call streams the
weight well for one row but takes 1.4 to 2 times as long for five, which eats what speculation
gains. oneDNN's packed layout is bound by memory for both. The packed copy doubles the memory of
the weights; SGL_ENTROPY_CPU_PACK=0 turns it off.

The plain path beside it is ``torch.nn.functional.linear``.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.nn.functional import linear as plain_linear

from sgl_entropy.runtime.v0_5_6.cpu.standins import plain_layers
from sgl_entropy.serving.row_costs import STEP, paid_rows

# Rows for which oneDNN lays the weight out: a chain of depth 4 and its bonus token.
_ROWS = 5
# oneDNN compiles and keeps a kernel for every row count, and those of one to three rows are slower
# than that of four (35, 42 and 30 ms for the small target where four take 27): fewer are filled up
# to _LEAST, more than STEP to multiples of it. Prefills above _MOST rows go the plain way, which
# is as fast there.
_LEAST, _MOST = 4, 96
_PACKED = "_sgl_entropy_packed"

_active = (
    plain_layers()
    and os.getenv("SGL_ENTROPY_CPU_PACK", "1") != "0"
    and torch.backends.mkldnn.is_available()
)

_updates = 0


def weights_changed() -> None:
    """A route of the server may have written to weights: every packed copy is made anew."""
    global _updates
    _updates += 1


def updates() -> int:
    """How often weights may have been written to."""
    return _updates


def serves(layer: Any) -> bool:
    """Whether ``layer`` is multiplied here: a plain float weight on the CPU engine."""
    if not _active:
        return False
    weight = layer.weight
    return bool(weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16))


def linear(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ layer.weight.T + bias``; the weight is packed at its first use.

    Args:
        layer: a module with ``weight`` [out, in]; the packed copy is kept beside it and made anew
            when the weight was replaced or written to. Tensors made under inference mode do not
            count what is written to them: see ``weights_changed``.
        x: [..., in].
    """
    rows = x.numel() // x.shape[-1]
    if not serves(layer) or x.dtype != layer.weight.dtype or not 0 < rows <= _MOST:
        return plain_linear(x, layer.weight, bias)
    weight = layer.weight
    key = (_updates, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    packed = layer.__dict__.get(_PACKED)
    if packed is None or packed[0] != key:
        packed = (key, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS))
        layer.__dict__[_PACKED] = packed
    padding = max(_LEAST - rows, paid_rows(rows) - rows if rows > STEP else 0)
    if padding <= 0:
        return torch.ops.mkldnn._linear_pointwise(x, packed[1], bias, "none", [], "")
    flat = torch.nn.functional.pad(x.reshape(rows, -1), (0, 0, 0, padding))
    out = torch.ops.mkldnn._linear_pointwise(flat, packed[1], bias, "none", [], "")
    return out[:rows].reshape(*x.shape[:-1], -1)
