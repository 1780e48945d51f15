"""Foreign system prompts: drops on counts made by hand, and a small measurement from end to end."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.base.typed_json import as_json, from_json
from sgl_entropy.cli import main
from sgl_entropy.evaluate import robustness
from sgl_entropy.evaluate.offline import chat_prompts, judged
from sgl_entropy.evaluate.tau import PromptCounts
from tests.engine import pair

Rows = list[PromptCounts]
ROOT = Path(__file__).resolve().parents[2]


def rows(tokens: int, groups: str = "xy") -> Rows:
    """Ten prompts a group of 100 cycles each; every third prompt is twice as easy."""
    easy = [tokens * (2 if i % 3 == 0 else 1) for i in range(10)]
    return [PromptCounts(group, one, 100) for group in groups for one in easy]


def test_a_drop_is_relative_to_the_own_system_prompt() -> None:
    counts = {"edsd": [rows(200), rows(190), rows(180)]}
    found = robustness.summarise(counts).drafters["edsd"]
    assert found.tau == pytest.approx(2.0 * 1.4)
    assert found.tau_by_system == pytest.approx([1.9 * 1.4, 1.8 * 1.4])
    assert found.mean_drop == pytest.approx(0.075)
    assert found.worst_drop == pytest.approx(0.1)
    # Each prompt drops by the same fraction: resampling prompts cannot change it.
    assert found.interval == pytest.approx([0.075, 0.075], abs=1e-4)


def test_differences_are_paired_over_prompts_and_systems() -> None:
    counts = {"edsd": [rows(200), rows(198)], "eagle3": [rows(220), rows(209)]}
    found = robustness.summarise(counts)
    assert found.differences["edsd - eagle3"].mean_drop == pytest.approx(-0.04)
    assert found.differences["edsd - eagle3"].interval == pytest.approx([-0.04] * 2, abs=1e-4)
    assert "edsd - eagle3: -4.0%" in found.table()


def test_groups_weigh_alike() -> None:
    own = [PromptCounts("x", 400, 100), *[PromptCounts("y", 200, 100)] * 9]
    foreign = [PromptCounts("x", 200, 100), *[PromptCounts("y", 200, 100)] * 9]
    found = robustness.summarise({"edsd": [own, foreign]}).drafters["edsd"]
    assert found.mean_drop == pytest.approx(1 / 3, abs=1e-4)


def test_a_committed_report_is_read_and_its_page_written_as_it_is() -> None:
    results = ROOT / "bench" / "results" / "training"
    raw = json.loads((results / "robustness.json").read_text())
    report = from_json(robustness.RobustnessReport, raw)
    assert as_json(report) == raw
    assert (results / "robustness.md").read_text().startswith(report.page())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("robustness")
    target = pair.write_target(folder / "target")
    pair.write_edsd(folder / "edsd", target)
    pair.write_eagle3(folder / "eagle3", target)
    (folder / "chat.txt").write_text("Hello\nThe quick brown fox\n" + "x" * 60 + "\n")
    (folder / "lines.txt").write_text("abc abc abc\n")
    (folder / "systems.txt").write_text("Be brief.\n0 1 2 3\n")
    return folder


def words(folder: Path, *more: str) -> list[str]:
    drafters = [f"{name}={folder / name}" for name in ("edsd", "eagle3")]
    texts = [str(folder / "chat.txt"), str(folder / "lines.txt")]
    return [
        *("drafter", "robustness", *drafters, "--target", str(folder / "target")),
        *("--texts", *texts, "--systems", str(folder / "systems.txt")),
        *("--max-new-tokens", "30", "--records", str(folder / "records.jsonl"), *more),
    ]


def test_a_measurement_goes_on_after_an_interrupt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is counted equals `drafter eval`'s count, and nothing is measured twice."""
    whole, calls = robustness.greedy_answers, []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    out = folder / "out.json"
    monkeypatch.setattr(robustness, "greedy_answers", breaks)
    assert main(words(folder)) == 130
    records = folder / "records.jsonl"
    assert len(records.read_text().splitlines()) == 2
    with records.open("a") as file:
        file.write('{"key": "cut')
    assert main(words(folder, "--json", str(out))) == 0
    assert len(calls) == 4, "its own, broken off, and two foreign ones"
    found = json.loads(out.read_text())
    assert (found["systems"], found["prompts"]) == (2, 4)
    assert found["systems_sha256"] == hashlib.sha256(b"Be brief.\n0 1 2 3\n").hexdigest()
    assert list(found["texts_sha256"]) == ["chat.txt", "lines.txt"]
    for name in ("edsd", "eagle3"):
        held = [json.loads(line) for line in records.read_text().splitlines()]
        groups = {"chat": ["Hello", "The quick brown fox", "x" * 60], "lines": ["abc abc abc"]}
        for index, system in enumerate([None, "Be brief.", "0 1 2 3"]):
            prompts = chat_prompts(folder / "target", groups, 1536, system)
            parts = judged(folder / "target", folder / name, prompts, 4, 30)
            counted = sorted(parts, key=lambda one: one.number)
            line = next(h for h in held if (h["system"], h["drafter"]) == (index, name))
            assert line["prompts"] == [
                [c.group, c.figures.tokens, c.figures.cycles] for c in counted
            ]
    monkeypatch.setattr(robustness, "greedy_answers", None)
    page = folder / "out.md"
    assert main(words(folder, "--json", str(out), "--page", str(page))) == 0
    assert json.loads(out.read_text())["drafters"] == found["drafters"]
    assert "mean drop" in capsys.readouterr().out
    lines = page.read_text().splitlines()
    edsd = found["drafters"]["edsd"]
    taus = " | ".join(f"{tau:.2f}" for tau in [edsd["tau"], *edsd["tau_by_system"]])
    assert any(line.startswith(f"| edsd | {taus} | {edsd['mean_drop']:.1%} |") for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1].startswith("Measured ")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    records.symlink_to("/dev/full")
    assert main(words(folder, "--records", str(records))) == 2
    assert f"the disk is full: {records} could not be written" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_under_one_system_prompt_is_left_out_of_all(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "systems.txt").write_text("q" * 40 + "\n")
    limit = len(chat_prompts(folder / "target", {"x": ["x" * 60]}, 1000)["x"][0])
    out = tmp_path / "out.json"
    more = ["--systems", str(tmp_path / "systems.txt"), "--max-prompt-tokens", str(limit)]
    assert main(words(folder, *more, "--json", str(out))) == 0
    assert json.loads(out.read_text())["prompts"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--depth", "0"], "--depth must be at least 1"),
        (["--json", "/nowhere/at/all.json"], "no such folder"),
        (["--page", "/nowhere/at/all.md"], "no such folder"),
        (["--max-prompt-tokens", "3"], "every prompt is longer than 3 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(folder, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_counts_as_the_cpu_does(folder: Path, tmp_path: Path) -> None:
    """On a machine with CUDA: pytest -m gpu tests/drafter/test_robustness.py"""
    found = []
    for device in ("cpu", "cuda"):
        records, out = tmp_path / f"{device}.jsonl", tmp_path / f"{device}.json"
        more = ["--device", device, "--records", str(records), "--json", str(out)]
        assert main(words(folder, *more)) == 0
        found.append(json.loads(out.read_text())["drafters"])
    assert found[0] == found[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = ["--records", str(tmp_path / "records.jsonl")]
    assert main(words(folder, *records, "--device", "cuda")) == 2
    assert "--device cuda: cannot compute there" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["edsd", "=x", "a=/nowhere"])
def test_drafters_are_named(folder: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(folder)[:2], word, *words(folder)[4:]]) == 2
    assert "robustness" not in capsys.readouterr().out
