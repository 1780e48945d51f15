"""Time of the matmuls of one forward on this core, by rows: it explains what verification costs.

A plain decode step of a batch of 8 multiplies every weight with 8 rows, a verification with 40.
If reading the weights bounds 8 rows and arithmetic bounds 40, no kernel makes the second as cheap
as the first: 40 rows at the core's peak are a floor. (Ours.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sgl_entropy.base.tables import markdown_table
from sgl_entropy.runtime.v0_5_6.cpu import gemm
from sgl_entropy.target.plain import PlainTarget

# Decode steps of batches 1 and 8, and their verifications in chains of depth 4.
ROWS = (1, 5, 8, 40)
_PEAK_SIZES = (512, 1024, 1536)


def measure(target: Path, tries: int = 7) -> dict[str, Any]:
    """Milliseconds of all linear layers of ``target`` in float32, and the core's peak.

    Raises:
        ValueError: the served path is off here: there is nothing to compare.

    Returns:
        ``flops_per_row``; ``peak_gflops``, of large square matmuls; ``rows``: for each number of
        rows ``plain_ms`` and ``packed_ms`` (fastest of ``tries``, taken in turn), ``gflops`` of
        the faster, and ``floor_ms``, the time at the peak.
    """
    weights = _weights(target)
    layers = [_Layer(weight) for weight in weights]
    if not gemm.serves(layers[0]):
        raise ValueError("packed matmuls are off here (SGLANG_USE_CPU_ENGINE, _CPU_PACK)")
    flops = sum(2.0 * weight.numel() for weight in weights)
    peak = max(_square(size, tries) for size in _PEAK_SIZES)
    by_rows: dict[str, dict[str, float]] = {}
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width) for width in {w.shape[1] for w in weights}}

        def plain(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for weight in weights:
                nn.functional.linear(inputs[weight.shape[1]], weight)

        def packed(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in layers:
                gemm.linear(layer, inputs[layer.weight.shape[1]])

        ways = _fastest([plain, packed], tries)
        best = min(ways)
        by_rows[str(rows)] = {
            "plain_ms": round(ways[0] * 1e3, 2),
            "packed_ms": round(ways[1] * 1e3, 2),
            "gflops": round(flops * rows / best / 1e9, 1),
            "floor_ms": round(flops * rows / peak / 1e6, 2),
        }
    return {"flops_per_row": flops, "peak_gflops": round(peak, 1), "rows": by_rows}


class _Layer(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def _weights(folder: Path) -> list[torch.Tensor]:
    target = PlainTarget.from_folder(folder)
    inner = [layer[name] for layer in target.layers for name in ("qkv", "o", "gate_up", "down")]
    return [*inner, target.head]


def _fastest(ways: Sequence[Callable[[], None]], tries: int) -> list[float]:
    """Seconds of each way, the best of ``tries`` in turn; the first round makes kernels."""
    best = [float("inf")] * len(ways)
    for number in range(tries + 1):
        for i, way in enumerate(ways):
            began = time.perf_counter()
            way()
            if number:
                best[i] = min(best[i], time.perf_counter() - began)
    return best


def _square(size: int, tries: int) -> float:
    """GFLOP/s of a square float32 matmul."""
    a, b = torch.randn(size, size), torch.randn(size, size)

    def multiply() -> None:
        torch.mm(a, b)

    return 2.0 * size**3 / _fastest([multiply], tries)[0] / 1e9


def page(data: dict[str, Any]) -> str:
    """The figure as Markdown."""
    columns = ("plain_ms", "packed_ms", "gflops", "floor_ms")
    rows = [[count, *(str(one[key]) for key in columns)] for count, one in data["rows"].items()]
    served = {int(count): one["packed_ms"] for count, one in data["rows"].items()}
    floor = data["rows"]["40"]["floor_ms"]
    return "\n\n".join(
        [
            "# Matmuls of one forward of the target, by rows",
            "All linear layers of the target in float32 on one core, milliseconds: plain, as "
            "served (packed up to 96 rows), and the floor, the same arithmetic at the core's peak "
            f"({data['peak_gflops']} GFLOP/s in large square matmuls). Batch 8 decodes 8 rows a "
            "step and verifies 40 in chains of depth 4.",
            markdown_table(("rows", "plain ms", "served ms", "GFLOP/s", "floor ms"), rows),
            f"Verifying 40 rows costs {served[40] / served[8]:.2f} times decoding 8; at the peak "
            f"it would cost {floor / served[8]:.2f} times. Verifying 5 rows costs "
            f"{served[5] / min(served[1], data['rows']['1']['plain_ms']):.2f} times decoding 1.",
        ]
    )
