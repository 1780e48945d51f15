"""Plans against finished fits: what is read, what is refused, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.base.typed_json import from_json
from sgl_entropy.cli import main
from sgl_entropy.figures.plan_check import PlanCheck, generation_seconds, page, read_finished
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.fit.test_processes import work_folder
from tests.train.plan.test_counts import settings_of

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "training"
SHORT = ["fit.epochs=2", "fit.max_steps=2", "fit.rows=40", "fit.answer_tokens=150"]
SHORT += ["generate.answer_tokens=1000"]


@pytest.fixture
def work(tiny_store: Store, tmp_path: Path) -> Path:
    return work_folder(tmp_path / "work", tiny_store)


def fitted(
    work: Path, target: Path, stop_after: int | None = None, more: tuple[str, ...] = ()
) -> TrainSettings:
    settings = load_settings(None, settings_of(work, target, [*SHORT, *more]))
    run_fit(drafter.make_fit(Workspace.of(settings), "EDSD"), lambda line: None, stop_after)
    return settings


def test_a_finished_fit_is_compared_by_the_command(
    work: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """Counts that follow from lengths and schedules are as planned, also on part of the store."""
    settings = fitted(work, tiny_folder)
    words = ["train", "--plan", "--check", str(work / "edsd"), "--page", str(tmp_path / "c.md")]
    words += ["--json", str(tmp_path / "c.json")]
    for one in settings_of(work, tiny_folder, SHORT):
        words += ["--set", one]
    code = main(words)
    held = json.loads((tmp_path / "c.json").read_text())
    assert code == (0 if held["as_planned"] else 1)
    fit = held["fits"]["edsd"]
    assert fit["parameters"]["ratio"] == 1
    assert fit["rows"]["ratio"] == pytest.approx(1, abs=0.2)
    assert fit["FLOPs"]["ratio"] == pytest.approx(1, abs=0.25)
    finished = read_finished(work / "edsd", Workspace.of(settings))
    assert fit["rows"]["recorded"] == finished.layer_rows >= finished.head_rows > 0
    assert fit["seconds"]["recorded"] == pytest.approx(finished.seconds, abs=0.06)
    assert held["store"]["bytes"]["recorded"] == Store(work / "store").bytes()
    assert fit["bytes of memory"]["recorded"] > 0
    text = (tmp_path / "c.md").read_text()
    assert "| edsd: parameters |" in text
    assert "Measured 20" in text


def test_what_is_no_finished_fit_of_these_settings_is_refused(
    work: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = fitted(work, tiny_folder, stop_after=2)
    with pytest.raises(ValueError, match="not finished, epoch 2 is missing"):
        read_finished(work / "edsd", Workspace.of(settings))
    other = load_settings(None, settings_of(work, tiny_folder, [*SHORT, "fit.rows=41"]))
    with pytest.raises(ValueError, match=r"made with another fit\.rows"):
        read_finished(work / "edsd", Workspace.of(other))
    wider = load_settings(None, settings_of(work, tiny_folder, [*SHORT, "drafter.fuse_size=40"]))
    with pytest.raises(ValueError, match="made with another fuse_size"):
        read_finished(work / "edsd", Workspace.of(wider))
    with pytest.raises(ValueError, match=r"no checkpoint\.pt there"):
        read_finished(work, Workspace.of(settings))
    assert main(["train", "fit", "--check", str(work)]) == 2
    assert "--check belongs to --plan" in capsys.readouterr().err


def test_a_folder_of_a_comparison_brings_its_own_recipe(work: Path, tiny_folder: Path) -> None:
    from sgl_entropy.train.compare.file import FitJob, Recipe
    from sgl_entropy.train.compare.run import fit_job

    more = ("drafter.fuse_residual=true",)
    settings = load_settings(None, settings_of(work, tiny_folder, [*SHORT, *more]))
    job = FitJob(Recipe("residual", "EDSD", settings), 3)
    fit_job(job, lambda line: None)
    plain = load_settings(None, settings_of(work, tiny_folder, []))
    found = read_finished(job.folder, Workspace.of(plain))
    assert (found.name, found.algorithm) == ("residual", "EDSD")
    assert found.work.settings.drafter.fuse_residual
    assert found.work.settings.fit == job.settings.fit


def test_what_was_fitted_is_told_by_its_checkpoint(work: Path, tiny_folder: Path) -> None:
    """Either drafter's folder beside the other's, whichever is planned; and another form of one is
    refused by name."""
    given = [*SHORT, "drafter.eagle3_layers=[0, 1, 2]"]
    settings = load_settings(None, settings_of(work, tiny_folder, given))
    for algorithm in ("EDSD", "EAGLE3"):
        run_fit(drafter.make_fit(Workspace.of(settings), algorithm), lambda line: None)  # type: ignore[arg-type]
        assert (
            read_finished(work / algorithm.lower(), Workspace.of(settings)).algorithm == algorithm
        )
    more = settings_of(work, tiny_folder, [*given, "drafter.fuse_residual=true"])
    with pytest.raises(ValueError, match="made with another architectures, edfuse_"):
        read_finished(work / "edsd", Workspace.of(load_settings(None, more)))
    other = settings_of(work, tiny_folder, [*SHORT, "drafter.eagle3_layers=[0, 2]"])
    with pytest.raises(ValueError, match="made with another eagle_config"):
        read_finished(work / "eagle3", Workspace.of(load_settings(None, other)))


def test_time_of_generation_over_runs_and_workers(tmp_path: Path) -> None:
    """Worker 0 was interrupted once: its two runs took 20 and 5 seconds; worker 1 took 10."""
    assert generation_seconds(tmp_path) is None
    rows = [(0, 100, 9.0), (0, 200, 10.0), (1, 100, 10.0), (0, 30, 9.0), (0, 50, 10.0)]
    names = ("worker", "answer_tokens", "tokens_per_s")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (tmp_path / "generate.jsonl").write_text("\n".join(lines) + "\n")
    assert generation_seconds(tmp_path) == pytest.approx(25)


def test_the_page_says_what_is_out_of_bounds() -> None:
    rows = {"rows": {"planned": 130.0, "recorded": 100.0, "ratio": 1.3}}
    found = from_json(PlanCheck, {"store": {}, "fits": {"a": rows}})
    assert not found.as_planned
    assert "| a: rows | 130 | 100 | 1.30 | no |" in page(found)
    rows["rows"] = {"planned": 80.0, "recorded": 100.0, "ratio": 0.8}
    found = from_json(PlanCheck, {"store": rows, "fits": {}})
    assert found.as_planned
    assert "| store: rows | 80 | 100 | 0.80 | yes |" in page(found)


@pytest.mark.parametrize("name", ["plan-check", "plan-check-generated"])
def test_the_committed_figures_can_be_read(name: str) -> None:
    data = json.loads((RESULTS / f"{name}.json").read_text())
    found = from_json(PlanCheck, {name: data[name] for name in ("store", "fits")})
    assert found.to_json().items() <= data.items()
