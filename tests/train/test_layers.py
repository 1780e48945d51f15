"""Layers that the target, or the store, does not have are named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.train import data, pipeline
from sgl_entropy.train.settings import TrainSettings, load_settings
from sgl_entropy.train.store import Store
from tests.train.test_group import work_folder


def quiet(line: str) -> None:
    del line


def settings_of(work: Path, target: Path, *more: str) -> TrainSettings:
    given = ["drafter.draft_vocab_size=96", "generate.dtype=float32", "generate.max_new_tokens=20"]
    return load_settings(None, [f"work={work}", f"target={target}", *given, *more])


def answered(work: Path, store: Store) -> None:
    rows = [
        {
            "prompt_id": e.prompt_id,
            "prompt_length": e.prompt_length,
            "tokens": store.tokens(e).tolist(),
        }
        for e in store.entries
    ]
    (work / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("online", ["true", "false"])
@pytest.mark.parametrize(
    ("layers", "missing"),
    [
        ("drafter.edsd_layers=[1, 4]", r"\[4\]"),
        ("drafter.eagle3_layers=[1, 8, 9]", r"\[8, 9\]"),
        ("generate.extra_layers=[7]", r"\[7\]"),
    ],
)
def test_layers_that_the_target_has_not_stop_every_stage_at_once(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, layers: str, missing: str, online: str
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    settings = settings_of(
        work, tiny_folder, "drafter.edsd_layers=[1, 2]", f"fit.online={online}", layers
    )
    message = rf"layers are 0 to 3, and {missing} are wanted: see drafter\.edsd_layers"
    with pytest.raises(ValueError, match=message):
        data.prepare(settings, None, 1, quiet)
    with pytest.raises(ValueError, match=message):
        data.generate(settings, quiet)
    assert not (work / "answers.jsonl").exists()
    answered(work, tiny_store)
    with pytest.raises(ValueError, match=message):
        data.features(settings, quiet)
    if online == "true":
        with pytest.raises(ValueError, match=message):
            pipeline.make_fit(settings, "EDSD")


@pytest.mark.parametrize(
    ("algorithm", "layers", "missing"),
    [("EDSD", "drafter.edsd_layers=[1, 3]", 3), ("EAGLE3", "drafter.eagle3_layers=[0, 2, 3]", 3)],
)
def test_a_store_of_other_layers_is_refused(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, algorithm: str, layers: str, missing: int
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    settings = settings_of(work, tiny_folder, "drafter.edsd_layers=[1, 2]", layers)
    message = rf"{work}/store holds layers \[0, 1, 2\], not \[{missing}\]"
    with pytest.raises(ValueError, match=message):
        pipeline.make_fit(settings, algorithm)  # type: ignore[arg-type]
