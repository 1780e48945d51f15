"""Which arithmetic is fast here: bfloat16 is twice as fast on one CPU, six times slower on another.

A CPU without bfloat16 instructions (AVX2 alone, say) has no fast matmul for it, and nothing says
so but the clock. ``auto`` therefore measures once; a store or checkpoint that exists already
decides instead, so that a run that goes on never changes its arithmetic midway.
"""

from __future__ import annotations

import time

import torch

DTYPES = ("auto", "bfloat16", "float32")
# bfloat16 costs precision: it has to pay for that.
_WORTH = 1.2


def matmul_seconds(dtype: torch.dtype, tries: int = 3) -> float:
    """Seconds of a linear layer, [128, 512] to [128, 1024], on this thread setting; the best of
    some. Small, since where there is no fast path even this takes a while."""
    rows, weight = torch.ones((128, 512), dtype=dtype), torch.ones((1024, 512), dtype=dtype)
    best = float("inf")
    for _ in range(tries + 1):  # the first also makes the kernel
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - began)
    return best


def resolve_dtype(wanted: str, held: str | None = None, device: str = "cpu") -> str:
    """``bfloat16`` or ``float32`` for the setting ``wanted``.

    Args:
        wanted: one of ``DTYPES``.
        held: what an existing store or checkpoint was made with; wins over a measurement.
        device: where it is computed; a GPU is not measured, it has bfloat16.
    """
    if wanted != "auto":
        return wanted
    if held is not None:
        return held
    if device != "cpu":
        return "bfloat16"
    ratio = matmul_seconds(torch.float32) / matmul_seconds(torch.bfloat16)
    return "bfloat16" if ratio > _WORTH else "float32"
