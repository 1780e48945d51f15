"""A full disk is told with the file that had no room, whichever stage writes it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_entropy.base.disk import write_whole
from sgl_entropy.train.compare import run
from sgl_entropy.train.compare.file import FitJob, Recipe
from sgl_entropy.train.samples.store import Store, StoreMeta, write_meta
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.fit.test_processes import work_folder


def fill(path: Path) -> None:
    """Leave no room for a file that is written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.{os.getpid()}.partial").symlink_to("/dev/full")


@pytest.fixture
def settings(tiny_store: Store, tiny_folder: Path, tmp_path: Path) -> TrainSettings:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "x.txt").write_text("Hello\n")
    given = [f"work={work_folder(tmp_path / 'work', tiny_store)}", f"target={tiny_folder}"]
    given += ["drafter.edsd_layers=[1, 2]", "drafter.draft_vocab_size=96", "fit.dtype=float32"]
    given += ["fit.epochs=1", "fit.steps=[1]", f"evaluate.benchmarks={tmp_path / 'benchmarks'}"]
    return load_settings(None, given)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (
            "elsewhere/meta.json",
            lambda settings, store: write_meta(
                Path(settings.work) / "elsewhere",
                StoreMeta((1,), 32),
            ),
        ),
        (
            "vocabulary-96.json",
            lambda settings, store: drafter.vocabulary(Workspace.of(settings), store),
        ),
        (
            "benchmarks.json",
            lambda settings, store: drafter.benchmark_prompts(Workspace.of(settings)),
        ),
        (
            "compare/a/seed-0/fit.json",
            lambda settings, store: run.fit_job(FitJob(Recipe("a", "EDSD", settings), 0), print),
        ),
    ],
    ids=["meta", "vocabulary", "benchmarks", "fit"],
)
def test_a_stage_names_the_file_that_had_no_room(
    settings: TrainSettings,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stage: Callable[[TrainSettings, Store], object],
) -> None:
    monkeypatch.setattr(drafter, "chat_prompts", lambda target, groups, room: {"x": [[5, 6]]})
    path = Path(settings.work) / name
    fill(path)
    with pytest.raises(OSError, match=rf"the disk is full: {path} could not be written.*kept"):
        stage(settings, tiny_store)
    assert not path.exists()
    assert not list(path.parent.glob("*.partial")), "nothing half-written is left"
    stage(settings, tiny_store)
    assert path.stat().st_size > 20


def test_a_file_that_is_written_again_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert [file.name for file in tmp_path.iterdir()] == ["f.json"]
    assert path.read_text() == "two"
