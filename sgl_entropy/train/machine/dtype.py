"""Which arithmetic is fast here: bfloat16 is twice as fast on one CPU, six times slower on another.

A CPU without bfloat16 instructions (only AVX2, say) has no fast matmul for it, and only the clock
shows it. ``auto`` therefore measures once. An existing store or checkpoint decides instead, so that
a resumed run never changes its arithmetic.
"""

from __future__ import annotations

import time

import torch

DTYPES = ("auto", "bfloat16", "float32")
# bfloat16 costs precision, so it has to be this much faster.
_WORTH = 1.2


def matmul_seconds(dtype: torch.dtype, tries: int = 3) -> float:
    """Seconds of a linear layer, [128, 512] to [128, 1024], on this thread setting: the best of
    ``tries``. Small, because without a fast path even this takes a while."""
    rows, weight = torch.ones((128, 512), dtype=dtype), torch.ones((1024, 512), dtype=dtype)
    best = float("inf")
    for _ in range(tries + 1):  # the first also makes the kernel
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - began)
    return best


def resolve_dtype(wanted: str, made_with: str | None = None, device: str = "cpu") -> str:
    """``bfloat16`` or ``float32`` for the setting ``wanted``.

    Args:
        wanted: one of ``DTYPES``.
        made_with: the dtype of an existing store or checkpoint; wins over a measurement.
        device: where the matmuls run; a GPU is not measured, it has bfloat16.
    """
    if wanted != "auto":
        return wanted
    if made_with is not None:
        return made_with
    if device != "cpu":
        return "bfloat16"
    ratio = matmul_seconds(torch.float32) / matmul_seconds(torch.bfloat16)
    return "bfloat16" if ratio > _WORTH else "float32"
