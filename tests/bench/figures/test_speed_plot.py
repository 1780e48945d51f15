"""The speed figure's picture: drawn from the committed result, whatever arms it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sgl_entropy_bench.figures import speed_plot

from sgl_entropy.cli.figures import _drawn

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "bench" / "results" / "speed.json"


@pytest.mark.parametrize("arms", [("none", "eagle3", "edsd"), ("none", "edsd")])
def test_the_committed_speeds_are_drawn(tmp_path: Path, arms: tuple[str, ...]) -> None:
    data = json.loads(COMMITTED.read_text())
    data["batch_sizes"] = {
        size: {arm: row[arm] for arm in arms} for size, row in data["batch_sizes"].items()
    }
    speed_plot.draw(data, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_another_ending_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG"):
        speed_plot.draw(json.loads(COMMITTED.read_text()), tmp_path / "speed.pdf")


def test_the_command_draws_the_speeds_beside_their_numbers(tmp_path: Path) -> None:
    result = tmp_path / "speed-quick.json"
    result.write_text(COMMITTED.read_text())
    assert _drawn("speed", result) == ["speed-quick.png"]
    assert (tmp_path / "speed-quick.png").is_file()
    assert _drawn("served", result) == []
