"""The figure of matmuls by rows: every linear layer counted, both ways timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.figures import matmuls
from sgl_entropy.runtime.v0_5_6.cpu import gemm
from tests.engine import pair


def test_all_linear_layers_are_counted_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "_active", True)
    target = pair.write_target(tmp_path / "target")
    data = matmuls.measure(target, tries=1)
    d, heads = pair.HIDDEN, pair.HEADS + 2 * pair.KV_HEADS
    inner = json.loads((target / "config.json").read_text())["intermediate_size"]
    layer = d * heads * pair.HEAD_DIM + pair.HEADS * pair.HEAD_DIM * d + 3 * d * inner
    assert data["flops_per_row"] == 2 * (pair.LAYERS * layer + pair.VOCABULARY * d)
    assert list(data["rows"]) == ["1", "5", "8", "40"]
    for rows, one in data["rows"].items():
        least = min(one["plain_ms"], one["packed_ms"])
        assert one["gflops"] == pytest.approx(
            data["flops_per_row"] * int(rows) / least / 1e6, rel=0.5, abs=0.2
        )
    assert "Verifying 40 rows costs" in matmuls.page(data)


def test_nothing_is_compared_where_packing_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "_active", False)
    target = pair.write_target(tmp_path / "target")
    with pytest.raises(ValueError, match="packed matmuls are off here"):
        matmuls.measure(target, tries=1)
