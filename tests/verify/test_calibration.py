"""Thresholds and tables from cycles counted by hand, and the file that stores them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.base.identity import Identity
from sgl_entropy.verify.calibration import (
    Calibration,
    CalibrationSettings,
    CalibrationTexts,
    PercentileRates,
    Percentiles,
)
from sgl_entropy.verify.observations import FireRates, Observations, StopTable
from sgl_entropy.verify.policies import DraftStep
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord
from tests.base.test_identity import write

ROOT = Path(__file__).resolve().parents[2]


def cycle(
    target: list[float],
    draft: list[float],
    overlap: list[float],
    accepted: int,
    emitted: int | None = None,
    prob: float = 0.5,
) -> CycleRecord:
    """A cycle whose bonus position has entropy 9, which must count nowhere."""
    return CycleRecord(
        draft_entropy=tuple(draft),
        draft_prob=(prob,) * len(draft),
        overlap=tuple(overlap),
        target_prob=(0.5,) * len(draft),
        target_entropy=(*target, 9.0),
        accepted=accepted,
        emitted=accepted + 1 if emitted is None else emitted,
    )


FIRST = [
    cycle([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [0.1, 0.9, 0.5], 3),
    cycle([3.0, 8.0, 8.0], [4.0, 8.0, 8.0], [0.6, 1.0, 1.0], 0),
]
# Two were accepted, and the request ended with the second.
SECOND = [cycle([2.5, 0.5, 8.0], [3.5, 1.5, 8.0], [0.4, 0.7, 1.0], 2, emitted=2)]


def test_what_was_judged() -> None:
    seen = Observations.of([FIRST, [], SECOND], 10)
    assert seen.positions.target_entropy.tolist() == [0.0, 1.0, 2.0, 3.0, 2.5, 0.5]
    assert seen.positions.draft_entropy.tolist() == [1.0, 2.0, 3.0, 4.0, 3.5, 1.5]
    assert seen.accepted.tolist() == [True, True, True, False, True, True]
    assert seen.cycle.tolist() == [0, 0, 0, 1, 2, 2]
    assert seen.place.tolist() == [0, 1, 2, 0, 0, 1]
    assert seen.emitted.tolist() == [4, 1, 2]
    # Drafts behind a rejected one fell with it; behind a request's end nothing is known.
    assert seen.drafts.stood.tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert seen.drafts.path.tolist() == [0.5, 0.25, 0.125] * 2 + [0.5, 0.25]


def test_rates_counted_by_hand() -> None:
    seen = Observations.of([FIRST, SECOND], 10)
    found = seen.rates(EasdRule(0.9, 1.9, overlap=0.5))
    assert asdict(found) == {
        "share": round(3 / 6, 4),  # places 1 and 2 of the first cycle, 0 of the second
        "share_without_overlap": round(4 / 6, 4),
        "per_100_tokens": round(300 / 7, 4),
        "changes_per_100_tokens": round(200 / 7, 4),
        "acceptance_fired": round(2 / 3, 4),
        "acceptance_not_fired": 1.0,
        "acceptance_length": round(7 / 3, 4),
        "acceptance_length_easd": round((2 + 1 + 2) / 3, 4),  # the first ends at place 1
    }
    never = seen.rates(EasdRule(100, 100))
    assert (never.share, never.acceptance_fired) == (0.0, None)
    assert never.acceptance_length_easd == never.acceptance_length
    assert seen.rates(EasdRule(0, 0, overlap=0)).acceptance_not_fired == 1.0


def test_thresholds_are_percentiles_of_each_model() -> None:
    count = 1001
    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(2))
    cycles = [
        cycle([t], [d], [0.3], 1) for t, d in zip(target.tolist(), draft.tolist(), strict=True)
    ]
    seen = Observations.of([cycles], 10)
    rule = seen.rule(80, 95, 10, 0.3)
    assert float((target > rule.target_entropy).double().mean()) == pytest.approx(0.2, abs=1e-3)
    assert float((draft > rule.draft_entropy).double().mean()) == pytest.approx(0.05, abs=2e-3)
    assert (rule.top_n, rule.overlap) == (10, 0.3)
    # An overlap as float32 and as rounded by a trace: still 3 of 10.
    assert seen.rates(rule).share > 0
    assert Observations.of(
        [[cycle([1.0], [1.0], [0.333333], 1)]], 3
    ).positions.overlap.tolist() == [1 / 3]
    for wrong in (-1, 101, math.nan, math.inf):
        with pytest.raises(ValueError, match="percentile must be a number from 0 to 100"):
            seen.rule(wrong, 50, 10, 0.3)
    with pytest.raises(ValueError, match="overlap must be a share"):
        seen.rule(50, 50, 10, 1.5)


def test_the_stops_table_corrects_the_drafters_own_probability() -> None:
    """Sure drafts stand as often as they say, unsure ones half as often."""
    sure = [cycle([0.1], [0.2], [0.5], int(at % 5 < 4), prob=0.8) for at in range(2000)]
    unsure = [cycle([0.1], [2.0], [0.5], int(at % 5 < 1), prob=0.4) for at in range(2000)]
    seen = Observations.of([sure, unsure], 10)
    table = seen.draft_stop()
    assert table == StopTable((0.2,), (1.0, 0.5))
    found = calibration(draft_stop=table).stop(0.3)
    step = DraftStep(1, torch.tensor([0.2, 2.0]), torch.tensor([1.0, 1.0]))
    assert found.stops(step).tolist() == [False, False]
    assert found.stops(replace(step, path=torch.tensor([0.5, 0.5]))).tolist() == [False, True]
    assert seen.draft_stop(least=10**6) == StopTable((), (round(2000 / 2400, 4),))


def test_bins_hold_about_as_many_drafts_each() -> None:
    generator = torch.Generator().manual_seed(2)
    entropy = torch.rand(1000, generator=generator, dtype=torch.float64)
    cycles = [cycle([0.1], [value], [0.5], 1) for value in entropy.tolist()]
    table = Observations.of([cycles], 10).draft_stop()
    held = torch.bincount(torch.bucketize(entropy, torch.tensor(table.edges).double()))
    assert len(held) == len(table.acceptance) == 10
    assert held.min() > 97
    assert table.acceptance == (1.0,) * 10, "more stood than the paths said: at most 1"
    assert len(Observations.of([cycles[:200]], 10).draft_stop().acceptance) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (cycle([math.nan], [1.0], [0.5], 1), "cycle 2: target_entropy is nan"),
        (cycle([1.0], [math.nan], [0.5], 1), "draft_entropy is nan"),
        (cycle([1.0], [math.inf], [0.5], 1), "draft_entropy is inf"),
        (cycle([1.0], [1.0], [0.55], 1), "no share of 10"),
        (replace(cycle([1.0], [1.0], [0.5], 0), fired=0, checked=1), "EASD fired"),
    ],
)
def test_what_cannot_be_calibrated_on(wrong: CycleRecord, message: str) -> None:
    with pytest.raises(ValueError, match=f"request 2, .*{message}"):
        Observations.of([[], [FIRST[0], wrong]], 10)


def test_nothing_to_calibrate_on() -> None:
    with pytest.raises(ValueError, match="answers are too short"):
        Observations.of([[], [cycle([], [], [], 0)]], 10)


RATES = FireRates(0.1, 0.2, 3.0, 2.0, None, 0.9, 2.5, 2.4)


def calibration(**changes: Any) -> Calibration:
    given: dict[str, Any] = {
        "target": Identity("target", "a" * 64),
        "drafter": Identity("drafter", "b" * 64),
        "rule": EasdRule(1.25, 2.5, 5, 0.4),
        "draft_stop": StopTable((0.5, 1.5), (0.9, 0.6, 0.2)),
        "positions": 1000,
        "texts": CalibrationTexts(("a.jsonl",), "c" * 64, 3),
        "settings": CalibrationSettings(
            Percentiles(80.0, 80.0), "offline", "float32", 4, 256, 300, 900
        ),
        "rates": RATES,
        "by_percentile": (PercentileRates(50, 0.5, 0.75, RATES),),
        "date": "2026-01-01",
        "version": "0",
    }
    given |= changes
    return Calibration(**given)


def test_the_file_is_read_back(tmp_path: Path) -> None:
    made = calibration()
    path = tmp_path / "c.json"
    path.write_text(json.dumps(made.to_dict()))
    found = Calibration.load(path)
    assert found.to_dict() == made.to_dict()
    assert found == made
    assert found.stop(0.25).edges == (0.5, 1.5)


def test_a_committed_file_is_read_and_written_as_it_is() -> None:
    path = ROOT / "bench" / "results" / "calibration" / "edsd-smollm2-135m.json"
    made = Calibration.load(path)
    assert made.settings.percentiles == Percentiles(80.0, 80.0)
    assert made.to_dict() == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["kind"], "drafter", "expected an object with"),
        (["format"], 2, "format 2 is not known; this version reads 1"),
        (["format"], True, "format True is not known"),
        (["colour"], 1, "unknown keys: colour"),
        (["rule", "colour"], 1, "rule: unknown keys: colour"),
        (["rule", "target_entropy"], -1, "target_entropy must be a number from 0"),
        (["rule"], [], "rule: expected an object"),
        (["target", "sha256"], 3, "target: sha256: expected a string, found int 3"),
        (["draft_stop", "edges"], [1.5, 0.5], "edges must rise"),
        (["draft_stop", "edges"], ["1", "2"], "draft_stop: edges.0.: expected a number"),
        (["draft_stop", "acceptance"], [0.9, 0.6], "one acceptance more than edges"),
        (["draft_stop", "acceptance"], [0.9, 0.6, 2], "must be shares"),
        (["positions"], 0, "positions must be at least 1"),
        (["positions"], "many", "positions: expected a whole number"),
        (["date"], None, "date: expected a string"),
    ],
)
def test_a_file_that_says_something_else(
    tmp_path: Path, keys: list[str], value: Any, message: str
) -> None:
    held = json.loads(json.dumps(calibration().to_dict()))
    inner = held
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = tmp_path / "c.json"
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message) as error:
        Calibration.load(path)
    assert str(error.value).startswith(f"calibration {path}: ")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(ValueError, match="no such file; `sgl-entropy calibrate` makes one"):
        Calibration.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Calibration.load(tmp_path)
    text = json.dumps(calibration().to_dict())
    for content, message in (
        ("", "not JSON"),
        (text[:-5], "not JSON"),
        ("[1]", "expected an object"),
        (text.replace("1.25", "NaN"), "NaN is not a number"),
        ("[" * 100_000, "not JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Calibration.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not JSON"):
        Calibration.load(path)
    held = calibration().to_dict()
    for key in held:
        path.write_text(json.dumps({name: value for name, value in held.items() if name != key}))
        with pytest.raises(ValueError, match=f"lacks {key}|format None|expected an object"):
            Calibration.load(path)


def test_a_foreign_calibration_names_what_differs(tmp_path: Path) -> None:
    target, drafter, other = (write(tmp_path / name, seed) for seed, name in enumerate("tdo"))
    made = calibration(target=Identity.of(target), drafter=Identity.of(drafter))
    made.check(target, drafter)
    with pytest.raises(ValueError, match=r"its drafter is d \(weights \w+\), but .*/o holds"):
        made.check(target, other)
    with pytest.raises(ValueError, match=r"its target is t.*its drafter is d"):
        made.check(drafter, target)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        made.check(target, tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match="a Git LFS pointer"):
        made.check(target, tmp_path / "none")
