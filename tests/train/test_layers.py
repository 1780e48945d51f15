"""Layers that the target, or the store, does not have are named before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.train.compare import run
from sgl_entropy.train.compare.file import Comparison, Recipe
from sgl_entropy.train.samples.store import FORMAT, Store
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import data, drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.fit.test_processes import work_folder


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


OUT_OF_REACH = r"drafters of a target of 4 layers can tap 0 to 2, {} are wanted: "


@pytest.mark.parametrize("online", ["true", "false"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("drafter.edsd_layers=[1, 3]", OUT_OF_REACH.format(r"\[3\]") + r"drafter\.edsd_layers"),
        ("drafter.edsd_layers=[1, 4]", OUT_OF_REACH.format(r"\[4\]")),
        ("drafter.eagle3_layers=[1, 8, 9]", OUT_OF_REACH.format(r"\[8, 9\]")),
        ("generate.extra_layers=[3, 7]", r"layers are 0 to 3, generate\.extra_layers names \[7\]"),
    ],
)
def test_layers_that_no_drafter_can_have_stop_every_stage_at_once(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, layers: str, message: str, online: str
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    settings = settings_of(
        work, tiny_folder, "drafter.edsd_layers=[1, 2]", f"fit.online={online}", layers
    )
    with pytest.raises(ValueError, match=message):
        data.prepare(Workspace.of(settings), None, 1, quiet)
    with pytest.raises(ValueError, match=message):
        data.generate(Workspace.of(settings), quiet)
    assert not (work / "answers.jsonl").exists()
    answered(work, tiny_store)
    with pytest.raises(ValueError, match=message):
        data.features(Workspace.of(settings), quiet)
    if online == "true":
        with pytest.raises(ValueError, match=message):
            drafter.make_fit(Workspace.of(settings), "EDSD")


@pytest.mark.parametrize(
    ("algorithm", "key"), [("EDSD", "edsd_layers"), ("EAGLE3", "eagle3_layers")]
)
def test_a_fit_asks_for_servable_layers_before_it_opens_the_store(
    tiny_folder: Path, tmp_path: Path, algorithm: Algorithm, key: str
) -> None:
    """A store may hold the last layer; no server can give it to a drafter."""

    def asked(layers: list[int]) -> TrainSettings:
        more = [
            "generate.extra_layers=[3]",
            "drafter.edsd_layers=[1, 2]",
            f"drafter.{key}={layers}",
        ]
        return settings_of(tmp_path, tiny_folder, *more)

    with pytest.raises(ValueError, match="can tap 0 to 2"):
        drafter.make_fit(Workspace.of(asked([0, 3])), algorithm)
    with pytest.raises(ValueError, match=r"meta\.json not found"):
        drafter.make_fit(Workspace.of(asked([0, 2])), algorithm)
    assert Workspace.of(asked([0, 2])).stored_layers == (0, 1, 2, 3)


def test_eagle3s_own_layers_of_a_shallow_target_are_refused_for_eagle3_alone(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """SGLang's three do not rise on four layers; a store holds them, an EDSD drafter has others."""
    settings = settings_of(tmp_path, tiny_folder, "drafter.edsd_layers=[1, 2]")
    assert Workspace.of(settings).stored_layers == (0, 1, 2)
    with pytest.raises(
        ValueError, match=r"found \[1, 1, 0\].*name others in drafter\.eagle3_layers"
    ):
        drafter.make_fit(Workspace.of(settings), "EAGLE3")


def test_a_comparison_asks_all_its_arms_before_the_first_is_fitted(
    tiny_folder: Path, tmp_path: Path
) -> None:
    arms = tuple(
        Recipe(name, "EDSD", settings_of(tmp_path, tiny_folder, f"drafter.edsd_layers={layers}"))
        for name, layers in (("a", [1, 2]), ("b", [1, 3]))
    )
    with pytest.raises(ValueError, match="can tap 0 to 2"):
        run.run(Workspace.of(arms[0].settings), Comparison(arms, "a", (0,)), 1, quiet)


@pytest.mark.parametrize(
    ("algorithm", "layers"),
    [("EDSD", "drafter.edsd_layers=[1, 2]"), ("EAGLE3", "drafter.eagle3_layers=[0, 1, 2]")],
)
def test_a_store_of_other_layers_is_refused(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, algorithm: Algorithm, layers: str
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    meta = {"format": FORMAT, "tap_layers": [0, 1], "hidden_size": 32}
    (work / "store" / "meta.json").write_text(json.dumps(meta))
    settings = settings_of(work, tiny_folder, "drafter.edsd_layers=[1, 2]", layers)
    message = rf"{work}/store holds layers \[0, 1\], not \[2\]"
    with pytest.raises(ValueError, match=message):
        drafter.make_fit(Workspace.of(settings), algorithm)
