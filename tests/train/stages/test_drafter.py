"""What the drafter's stages read, and what they leave unread."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.cli import main
from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.fit.test_processes import work_folder


def settings_of(work: Path, target: Path, *more: str) -> TrainSettings:
    given = ["drafter.edsd_layers=[1, 2]", "drafter.draft_vocab_size=96", "fit.dtype=float32"]
    return load_settings(None, [f"work={work}", f"target={target}", *given, *more])


@pytest.mark.parametrize("algorithm", ["EDSD", "EAGLE3"])
def test_export_reads_the_checkpoint_alone(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    """Neither the store nor the target is there any more, and what was asked for is not what was
    trained: an export copies the checkpoint."""
    work = work_folder(tmp_path / "work", tiny_store)
    words = ["train", "export", "--work", str(work), "--target", str(tmp_path / "gone")]
    words += ["--algorithm", algorithm, "--out", str(tmp_path / "out")]
    assert main(words) == 2, "nothing is trained yet"
    given = ("drafter.eagle3_layers=[0, 1, 2]", "fit.epochs=1", "fit.steps=[1]")
    trained = drafter.make_fit(Workspace.of(settings_of(work, tiny_folder, *given)), algorithm)
    run_fit(trained, lambda line: None, stop_after=2)
    shutil.rmtree(work / "store")
    assert main(words) == 0
    exported = load_drafter(tmp_path / "out")
    assert exported.config == trained.config
    assert torch.equal(exported.d2t, trained.drafter.d2t)
    taps = torch.randn(7, len(trained.side.tap_scale))
    wanted = trained.drafter.fuse_taps(taps / trained.side.tap_scale)
    torch.testing.assert_close(exported.fuse_taps(taps), wanted, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_fit_reads_two_tensors_of_the_target(
    tiny_store: Store,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
    dtype: torch.dtype,
) -> None:
    """Embedding and head, wherever the shards have them; an 8B target in float32 is 32 GB."""
    target = tmp_path / "target"
    shutil.copytree(tiny_folder, target)
    weights = {k: v.to(dtype) for k, v in load_file(target / "model.safetensors").items()}
    if not tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
        config = (target / "config.json").read_text()
        (target / "config.json").write_text(
            config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
        )
    whole = PlainTarget(
        {**PlainTarget.from_folder(tiny_folder).config, "tie_word_embeddings": tied}, dict(weights)
    )
    (target / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: weights[name] for name in part}, target / f"part-{number}.safetensors")

    def all_of_it(*given: object, **more: object) -> None:
        raise MemoryError("the whole target is loaded")

    monkeypatch.setattr(PlainTarget, "__init__", all_of_it)
    settings = settings_of(work_folder(tmp_path / "work", tiny_store), target)
    settings = replace(settings, fit=replace(settings.fit, dtype=str(dtype).split(".")[1]))
    side = drafter.make_fit(Workspace.of(settings), "EDSD").side
    assert torch.equal(side.embedding, whole.embedding)
    chosen = drafter.make_vocabulary(Workspace.of(settings))
    assert torch.equal(side.head, whole.head[chosen])
