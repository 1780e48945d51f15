"""Which two layers the profiles name: ties, collisions, fixed layers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.select.choice import Choice, choose, ranked
from sgl_entropy.select.selection_report import Profile, SelectReport, TextsUsed, read_choice
from sgl_entropy.select.settings import SelectSettings

# Six hidden states, 0 .. 5: the ends are highest and must not be chosen.
CURVATURE = [9.0, 1.0, 2.0, 5.0, 3.0, 9.0]
LIDAR = [9.0, 6.0, 1.0, 2.0, 3.0, 9.0]


def test_the_ends_are_no_candidates_and_pairs_rise() -> None:
    choice = choose(CURVATURE, LIDAR)
    assert choice == Choice(a=3, b=1)
    assert choice.hidden_states == (1, 3)
    assert choice.target_layer_ids == (0, 2)


def test_ties_go_to_the_lower_number() -> None:
    assert ranked([0.0, 1.0, 4.0, 4.0, 4.0, 0.0]) == [2, 3, 4, 1]


def test_where_both_pick_one_b_steps_down() -> None:
    assert choose(CURVATURE, CURVATURE) == Choice(a=3, b=4, stepped_down="b")


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        pytest.param({"fix_a": 3}, Choice(4, 1, ("a",)), id="a-is-a-layer-id"),
        pytest.param({"fix_b": 3}, Choice(3, 4, ("b",)), id="b"),
        pytest.param({"fix_a": 0}, Choice(1, 4, ("a",), "b"), id="a-on-lidars-pick"),
        pytest.param({"fix_b": 2}, Choice(4, 3, ("b",), "a"), id="b-on-curvatures-pick"),
        pytest.param({"fix_a": 3, "fix_b": 0}, Choice(4, 1, ("a", "b")), id="both"),
    ],
)
def test_fixed_layers(fixed: dict[str, int], expected: Choice) -> None:
    assert choose(CURVATURE, LIDAR, **fixed) == expected


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"fix_a": 4}, "--fix-a 4: expected a decoder layer id from 0 to 3"),
        ({"fix_b": -1}, "--fix-b -1"),
        ({"fix_a": 2, "fix_b": 2}, "both name layer 2"),
    ],
)
def test_layers_that_cannot_be_fixed(fixed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(CURVATURE, LIDAR, **fixed)


def test_a_profile_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LiDAR of hidden states \[2\] is not finite"):
        choose(CURVATURE, [1.0, 1.0, float("nan"), 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("fixed", "a_line", "b_line"),
    [
        pytest.param(
            {}, "highest curvature", "runner-up by LiDAR (the first, hidden state 3, is a)"
        ),
        pytest.param(
            {"fix_b": 2},
            "runner-up by curvature (the first, hidden state 3, is b)",
            "fixed by --fix-b",
        ),
    ],
)
def test_the_table_says_why(fixed: dict[str, int], a_line: str, b_line: str) -> None:
    band = [(value - 0.5, value + 0.5) for value in CURVATURE]
    report = SelectReport(
        target="t",
        texts=TextsUsed("t.jsonl", "0" * 64, 9, 0, 99),
        settings=SelectSettings(),
        curvature=Profile(CURVATURE, band, 0.75),
        lidar=Profile(CURVATURE, band, 0.5),
        choice=choose(CURVATURE, CURVATURE, **fixed),
        threads=1,
        seconds=1.0,
    )
    *_, a, _, b, behind, ids = report.table().splitlines()
    assert a_line in a
    assert "75% of 200 resamples" in a
    assert b_line in b
    assert "50% of 20 resamples" in b
    assert behind.endswith(
        ("3 (5.0000), 2 (2.0000), 1 (1.0000)", "4 (3.0000), 2 (2.0000), 1 (1.0000)")
    )
    assert ids == "target_layer_ids: [2, 3]"


@pytest.mark.parametrize(("name", "layers"), [("", (0, 19)), ("-probe", (22, 28))])
def test_committed_reports_are_read(name: str, layers: tuple[int, int]) -> None:
    results = Path(__file__).resolve().parents[2] / "bench" / "results" / "select"
    assert read_choice(results / f"smollm2-135m{name}.json") == layers


def write(path: Path, choice: Any) -> Path:
    path.write_text(json.dumps({"choice": choice, "profiles": {"curvature": CURVATURE}}))
    return path


def test_a_report_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", {"hidden_states": [1, 4], "target_layer_ids": [0, 3]})
    assert read_choice(path) == (0, 3)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        pytest.param([1, 2], "not a report", id="no-object"),
        pytest.param({"hidden_states": [1, 2]}, "not a report", id="no-ids"),
        pytest.param({"target_layer_ids": [1, "2"]}, "expected two integers", id="text"),
        pytest.param({"target_layer_ids": [0, True]}, "expected two integers", id="bool"),
        pytest.param({"target_layer_ids": [0, 1, 2]}, "expected two integers", id="three"),
        pytest.param({"target_layer_ids": [3, 0]}, "rising layer ids from 0 to 3", id="falling"),
        pytest.param({"target_layer_ids": [1, 4]}, "rising layer ids from 0 to 3", id="the-last"),
        pytest.param(
            {"hidden_states": [0, 3], "target_layer_ids": [0, 3]}, "different layers", id="disagree"
        ),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, choice: Any, message: str) -> None:
    path = write(tmp_path / "r.json", choice)
    with pytest.raises(ValueError, match=message) as caught:
        read_choice(path)
    assert str(path) in str(caught.value)


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.json: not found"):
        read_choice(tmp_path / "gone.json")
