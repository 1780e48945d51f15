"""A store belongs to the target that it was made for, not to the next one of its name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.figures.plan_check import check
from sgl_entropy.figures.train_throughput import OURS, ThroughputJob, make_trainer
from sgl_entropy.target.fingerprint import made_for, target_fingerprint
from sgl_entropy.train.plan.estimate import known_lengths
from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.samples import open_store
from sgl_entropy.train.samples.store import FORMAT, Store
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import data, drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.fit.test_processes import work_folder


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


def other_weights(folder: Path) -> Path:
    """The same sizes; one projection of one layer moved, as a fine-tuning might."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors")
    return folder


def settings_of(work: Path, target: Path, *more: str) -> TrainSettings:
    given = ["drafter.edsd_layers=[1, 2]", "drafter.draft_vocab_size=96"]
    given += ["generate.max_new_tokens=20", "generate.dtype=float32", "fit.dtype=float32"]
    return load_settings(None, [f"work={work}", f"target={target}", *given, *more])


def test_weights_config_and_nothing_else_count(tiny_folder: Path, tmp_path: Path) -> None:
    own = target_fingerprint(tiny_folder)
    moved = copied(tiny_folder, tmp_path / "moved")
    assert target_fingerprint(moved) == own
    weights = load_file(moved / "model.safetensors")
    (moved / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, moved / f"part-{number}.safetensors")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert target_fingerprint(moved) == own, "split and saved again, it is the same model"
    (moved / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0}))
    assert target_fingerprint(moved) != own
    tuned = other_weights(copied(tiny_folder, tmp_path / "tuned"))
    assert target_fingerprint(tuned) != own


def test_large_weights_are_sampled(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(64 << 10, 1 << 10)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    target_fingerprint(tmp_path)
    began = time.process_time()
    target_fingerprint(tmp_path)
    assert time.process_time() - began < 0.1, "256 MiB were read"


def test_a_store_of_another_target_of_the_same_name_is_refused(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    own = copied(tiny_folder, tmp_path / "a" / "model")
    other = other_weights(copied(tiny_folder, tmp_path / "b" / "model"))
    work = work_folder(tmp_path / "work", tiny_store)
    meta = {
        **{"format": FORMAT, **made_for(own), "tap_layers": [0, 1, 2], "hidden_size": 32},
        **{"max_new_tokens": 20, "dtype": "float32"},
    }
    meta["prompts_sha256"] = load_prompts(workspace_of(work, own), print)[1]
    (work / "store" / "meta.json").write_text(json.dumps(meta))
    message = rf"{work}/store was made for another target, model, than {other} .*--work"
    with pytest.raises(ValueError, match=message):
        drafter.make_fit(workspace_of(work, other), "EDSD")
    with pytest.raises(ValueError, match=message):
        data.generate(workspace_of(work, other), print)
    with pytest.raises(ValueError, match=message):
        known_lengths(workspace_of(work, other), print)
    with pytest.raises(ValueError, match=message):
        make_trainer(ThroughputJob(workspace_of(work, other), "EDSD", OURS))
    with pytest.raises(ValueError, match=message):
        check(workspace_of(work, other), [], print)
    assert drafter.make_fit(workspace_of(work, own), "EDSD").samples.train
    renamed = copied(own, tmp_path / "renamed")
    lines: list[str] = []
    # All that the prompts give is stored already, but for answers of one token.
    data.generate(workspace_of(work, renamed, "generate.answer_tokens=1"), lines.append)
    assert "nothing to do" in lines[-1], "the same target under another name goes on"


def workspace_of(work: Path, target: Path, *more: str) -> Workspace:
    return Workspace.of(settings_of(work, target, *more))


def write_report(path: Path, states: int = 5, **target: str) -> Path:
    """A report as `sgl-entropy select` writes it, of hidden states 2 and 3."""
    choice = {"hidden_states": [2, 3], "target_layer_ids": [1, 2]}
    held = {"choice": choice, "profiles": {"curvature": [0.0] * states}, **target}
    path.write_text(json.dumps(held))
    return path


def test_a_select_report_of_another_target_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """By weights and config where the report holds their fingerprint, else by what it does hold;
    for the store as for the drafter."""
    other = other_weights(copied(tiny_folder, tmp_path / "other"))
    path = tmp_path / "select.json"

    def asked(target: Path) -> Workspace:
        return workspace_of(tmp_path / "work", target, f"drafter.select_report={path}")

    write_report(path, **made_for(tiny_folder))
    assert asked(tiny_folder).stored_layers == (0, 1, 2)
    assert drafter.drafter_config(asked(tiny_folder), "EDSD").target_layer_ids == (
        1,
        2,
    )
    message = rf"select_report {path} was made for .*{tiny_folder.name}, than {other} \(other weigh"
    for refused in (
        lambda: asked(other).stored_layers,
        lambda: drafter.make_fit(asked(other), "EDSD"),
        lambda: data.prepare(asked(other), None, 1, print),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    (other / "model.safetensors").unlink()
    assert asked(other).stored_layers == (0, 1, 2), "a plan needs no weights"

    write_report(path, target="renamed-since")
    assert asked(tiny_folder).stored_layers == (0, 1, 2), "from before the fingerprint"
    write_report(path, states=6, target="deeper")
    with pytest.raises(ValueError, match=r"another target, deeper, .*\(5 layers, now 4\)"):
        asked(tiny_folder).check_layers()


@pytest.mark.usefixtures("one_process")
def test_a_new_store_records_its_target(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt_id": i, "tokens": [5 + i, 7, 9]} for i in range(2)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.generate(workspace_of(tmp_path, tiny_folder, "generate.workers=1"), lambda line: None)
    meta = json.loads((tmp_path / "store" / "meta.json").read_text())
    assert meta["target_fingerprint"] == target_fingerprint(tiny_folder)
    assert meta["format"] == FORMAT


def test_a_store_without_a_fingerprint_is_known_by_its_sizes(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    meta = {"format": FORMAT, "target": tiny_folder.name, "tap_layers": [0, 1, 2]}
    (work / "store" / "meta.json").write_text(json.dumps({**meta, "hidden_size": 32}))
    before = (work / "store" / "meta.json").read_bytes()
    assert open_store.open_store(workspace_of(work, tiny_folder)).entries
    other = copied(tiny_folder, tmp_path / "other")
    assert open_store.open_store(workspace_of(work, other)).entries, "folders are renamed"
    settings = settings_of(work, other, "drafter.edsd_layers=[1, 2]")
    with pytest.raises(ValueError, match=rf"made for another target, {tiny_folder.name}, than"):
        data.generate(Workspace.of(settings), lambda line: None)
    old_form = {**meta, "hidden_size": 32, "target_fingerprint": "0123456789abcdef"}
    (work / "store" / "meta.json").write_text(json.dumps(old_form))
    assert open_store.open_store(workspace_of(work, other)).entries, "of another making"
    (work / "store" / "meta.json").write_text(json.dumps({**meta, "hidden_size": 64}))
    with pytest.raises(ValueError, match=r"width 64 .* now width 32"):
        open_store.open_store(workspace_of(work, tiny_folder))
    (work / "store" / "meta.json").write_bytes(before)
