"""Flags of ``sgl-entropy train``: none is taken by a stage that would ignore it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train.stages import data, drafter
from sgl_entropy.train.workspace import Workspace


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["compare", "--plan"], "--plan estimates prepare, features, generate, fit, not compare"),
        (["benchmark", "--plan"], "not benchmark"),
        (["evaluate", "--plan"], "not evaluate"),
        (["export", "--plan"], "not export"),
        (["fit", "--json", "-"], "--json belongs to evaluate, compare, benchmark, --plan"),
        (["fit", "--out", "x"], "--out belongs to export, not to fit"),
        (["fit", "--server", "http://h:1"], "--server belongs to prepare"),
        (["prepare", "--concurrency", "3"], "--concurrency is of requests to a --server"),
        (["compare", "--algorithm", "EAGLE3"], "--algorithm belongs to fit, export, benchmark"),
        (["compare", "--batches", "3"], "--batches belongs to benchmark"),
        (["fit", "--seeds", "0"], "--seeds belongs to compare"),
        (["evaluate", "--page", "p.md"], "--page belongs to compare, benchmark, --plan"),
        (["--plan", "--page", "p.md"], "--page with --plan is the table of --check"),
        (["--plan", "--check", "w", "--algorithm", "EDSD"], "--algorithm: --check reads it"),
        (["--plan", "--workers", "2"], "--workers belongs to compare, not to --plan"),
        (["benchmark", "--arms", "a", "--algorithm", "EDSD"], "--arms names a recipe with its own"),
        (["features", "--threads", "2"], "--threads belongs to prepare, fit, export, evaluate"),
        (["features", "--online"], "--online belongs to prepare, fit, compare, --plan"),
        (["fit", "--settings"], "--settings prints the settings and does nothing else"),
        (["--settings", "--threads", "2"], "not to --settings"),
        ([], "a training without STAGE runs prepare, features, fit, export, evaluate"),
        (["--config", "c"], "--config c: no such file; expected settings, TOML or JSON"),
        (["--out", "d", "--drafter", "d"], "--drafter belongs to evaluate; without STAGE"),
        (["--out", "d", "--arms", "a"], "--arms belongs to compare, benchmark, not to a training"),
        (["--out", "d", "--json", "-"], "--json takes the figures of evaluate"),
        (["fit", "--threads", "0"], "--threads must be at least 1"),
        (["benchmark", "--batches", "0"], "--batches must be at least 1"),
    ],
)
def test_a_flag_of_another_stage_is_refused(
    words: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_drafter_has_no_place_for_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "export", "--out", str(tmp_path / "file" / "deep")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_stdout_holds_the_figures_alone(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(work: Workspace, folder: Path, report: Any) -> dict[str, float]:
        report("1 of 2 prompts")
        return {"tau": 2.0}

    monkeypatch.setattr(drafter, "evaluate", evaluate)
    assert main(["train", "evaluate", "--target", str(tiny_folder), "--drafter", "a"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"tau": 2.0}
    assert "1 of 2 prompts" in printed.err


def test_online_is_a_setting_by_another_name(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[bool] = []
    monkeypatch.setattr(
        drafter, "fit", lambda work, *_, **__: found.append(work.settings.fit.online)
    )
    words = ["train", "fit", "--target", str(tiny_folder)]
    assert main([*words, "--online"]) == 0
    assert main(words) == 0
    assert main([*words, "--online", "--set", "fit.online=false"]) == 0
    assert found == [True, False, True]
    assert main(["train", "--settings"]) == 0
    assert "\nonline = false\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ["prepare", "generate", "fit", "export"]),
        (["fit.online=true"], ["prepare", "fit", "export"]),
        (["evaluate.benchmarks=b"], ["prepare", "generate", "fit", "export", "evaluate"]),
    ],
)
def test_a_training_without_a_stage_runs_all_of_them(
    settings: list[str],
    expected: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[str] = []

    def evaluate(work: Workspace, folder: Path, report: Any) -> dict[str, float]:
        ran.append("evaluate")
        assert folder == tmp_path / "drafter"
        return {"tau": 2.0}

    for module, names in (
        (data, ("prepare", "features", "generate")),
        (drafter, ("fit", "export")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name, **__: ran.append(name))
    monkeypatch.setattr(drafter, "evaluate", evaluate)
    words = ["train", "--target", str(tiny_folder), "--work", str(tmp_path / "work")]
    words += ["--out", str(tmp_path / "drafter")]
    words += [word for setting in settings for word in ("--set", setting)]
    assert main(words) == 0
    assert ran == expected
    out = capsys.readouterr().out
    assert json.loads(out or "{}") == ({"tau": 2.0} if "evaluate" in expected else {})
    ran.clear()
    (tmp_path / "drafter").mkdir()
    (tmp_path / "drafter" / "config.json").write_text((tiny_folder / "config.json").read_text())
    assert main(words) == 2
    assert "holds something other than a drafter" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    assert "torchrun starts `train fit` alone" in capsys.readouterr().err
    assert ran == []


def test_features_without_answers_is_the_pass_that_writes_them(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    for name in ("features", "generate"):
        monkeypatch.setattr(data, name, lambda work, report, name=name: stages.append(name))
    words = ["--target", str(tiny_folder), "--work", str(tmp_path)]
    assert main(["train", "features", *words]) == 0
    (tmp_path / "answers.jsonl").write_text("")
    assert main(["train", "features", *words]) == 0
    assert main(["train", "generate", *words]) == 0
    assert stages == ["generate", "features", "generate"]
