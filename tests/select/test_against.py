"""Scores of layers beside trained drafters: ranks by hand, and every report that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.select.against import (
    TrainedPair,
    check_tapped,
    read_trained,
    score_pairs,
    spearman,
)
from tests.select.conftest import command

Texts = Callable[..., Path]


def comparison(path: Path, arms: dict[str, tuple[list[int], float]], **changes: Any) -> Path:
    """A report of `train compare` as far as it is read: arm -> (layers, tau)."""
    runs = [
        {"arm": name, "seed": seed, "algorithm": "EDSD", "layers": layers, **changes}
        for seed in (0, 1)
        for name, (layers, _) in arms.items()
    ]
    held = {"arms": {name: {"tau": tau} for name, (_, tau) in arms.items()}, "runs": runs}
    path.write_text(json.dumps(held))
    return path


PAIRS = {
    "ab": ([0, 1], 1.30),
    "ac": ([0, 2], 1.50),
    "bc": ([1, 2], 1.40),
    "ad": ([3, 0], 1.45),
    "abc": ([0, 1, 2], 1.60),
}


def test_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) == 0.0


def test_pairs_are_read_with_their_tau(tmp_path: Path) -> None:
    """Each arm once, whatever its seeds; of three layers none."""
    found = read_trained(comparison(tmp_path / "c.json", PAIRS))
    check_tapped(found, num_layers=5)
    assert [one.arm for one in found] == ["ab", "ac", "bc", "ad"]
    assert found[3] == TrainedPair("ad", (0, 3), 1.45)


def test_scores_are_those_of_the_pair() -> None:
    trained = [TrainedPair("x", (0, 2), 1.2), TrainedPair("y", (1, 2), 1.3)]
    # Hidden states 0 .. 4: layers 0 to 2 are states 1 to 3.
    curvature, lidar = [9.0, 1.0, 2.0, 3.0, 9.0], [9.0, 4.0, 6.0, 5.0, 9.0]
    found = score_pairs(trained, curvature, lidar, {(0, 2): 0.25, (1, 2): 0.5})
    first, second = found.arms
    assert (first.curvature, first.lidar, first.probe) == (3.0, 5.0, 0.25)
    assert (second.curvature, second.lidar, second.probe) == (3.0, 6.0, 0.5)
    deviation = (2 / 3) ** 0.5
    # x: layer 2 bends most; LiDAR of layer 0 is a deviation below the mean.
    assert first.metrics == pytest.approx((1 - 1) / deviation, abs=1e-4)
    assert second.metrics == pytest.approx((1 + 1) / deviation, abs=1e-4)
    assert found.spearman == {"curvature": 0.0, "lidar": 1.0, "metrics": 1.0, "probe": 1.0}
    table = found.table().splitlines()
    assert table[0].split() == ["layer", "ids", "tau", "curvature", "LiDAR", "both", "probe"]
    assert "[1, 2]" in table[2], "the best first"
    assert table[-1].split()[-1] == "+1.00"
    assert "probe" not in score_pairs(trained, curvature, lidar, None).spearman


@pytest.mark.slow
def test_the_command_holds_scores_against_drafters(
    target_folder: Path, texts_file: Texts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tiny target lets three layers be tapped: the fourth arm repeats a pair.
    arms = {name: held for name, held in PAIRS.items() if name != "ad"} | {"again": ([0, 1], 1.35)}
    held = comparison(tmp_path / "c.json", arms)
    report = tmp_path / "r.json"
    words = ("--against", str(held), "--by", "probe", "--json", str(report))
    assert command(target_folder, texts_file(20), *words) == 0
    found = json.loads(report.read_text())
    explained = {tuple(p["target_layer_ids"]): p["explained"] for p in found["probe"]["pairs"]}
    assert [row["arm"] for row in found["against"]["arms"]] == ["ab", "ac", "bc", "again"]
    for row in found["against"]["arms"]:
        assert row["probe"] == explained[tuple(row["target_layer_ids"])]
    assert set(found["against"]["spearman"]) == {"curvature", "lidar", "metrics", "probe"}
    out = capsys.readouterr().out
    assert "rank correlation" in out
    assert out.splitlines()[-1].startswith("target_layer_ids: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a report of `sgl-entropy train compare --json`"),
        ('{"arms": {}, "runs": [{"arm": "a"}]}', "do not say which layers they tap"),
        ('{"arms": {}, "runs": []}', "0 of its arms are EDSD drafters of two layers"),
        ("[", "r.json"),
    ],
)
def test_reports_that_do_not_do(
    target_folder: Path,
    texts_file: Texts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    held = tmp_path / "r.json"
    held.write_text(text)
    assert command(target_folder, texts_file(), "--against", str(held)) == 2
    assert message in capsys.readouterr().err


def test_other_targets_and_algorithms_do_not_do(tmp_path: Path) -> None:
    held = read_trained(comparison(tmp_path / "c.json", PAIRS))
    with pytest.raises(ValueError, match="ad taps layer 3, of a target of 4 layers"):
        check_tapped(held, num_layers=4)
    eagle = comparison(tmp_path / "e.json", PAIRS, algorithm="EAGLE3")
    with pytest.raises(ValueError, match="0 of its arms are EDSD drafters"):
        read_trained(eagle)
