"""Saved checkpoints: readable, whole or not there, and never in place of others by accident."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from sgl_entropy.drafter.checkpoint import (
    load_tensors,
    save,
    verify_headers,
)
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from tests.drafter.broken import WEIGHTS
from tests.drafter.tiny import (
    eagle3_config,
    edsd_config,
    random_tensors,
    write_drafter,
    write_eagle3,
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", [edsd_config(), eagle3_config()], ids=["edsd", "eagle3"])
def test_saved_checkpoints_load(tmp_path: Path, config: DrafterConfig, dtype: str) -> None:
    tensors = random_tensors(config)
    folder = save(
        tmp_path / "new" / "drafter", config, tensors, dtype, extra_files={"README.md": "x"}
    )
    again, loaded = load_tensors(folder)
    assert again == config
    kind = getattr(torch, dtype)
    for name, tensor in tensors.items():
        expected = tensor.to(kind) if tensor.is_floating_point() else tensor
        assert torch.equal(loaded[name], expected), name
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", WEIGHTS]


def test_saving_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    config = edsd_config()
    tensors = random_tensors(config)
    folder = tmp_path / "drafter"
    with pytest.raises(DrafterError, match=r"norm\.weight: expected \[16\], found None"):
        save(folder, config, {k: v for k, v in tensors.items() if k != "norm.weight"})
    with pytest.raises(DrafterError, match="extra: unexpected"):
        save(folder, config, tensors | {"extra": torch.ones(1)})
    with pytest.raises(DrafterError, match=r"fc\.weight: 0 NaN and 512 infinite"):
        save(folder, config, tensors | {"fc.weight": torch.full((16, 32), 1e6)}, "float16")
    with pytest.raises(DrafterError, match="dtype 'int8'"):
        save(folder, config, tensors, "int8")
    assert list(tmp_path.iterdir()) == []


def test_saving_never_replaces_by_accident(tmp_path: Path) -> None:
    config = edsd_config()
    first, second = random_tensors(config, seed=1), random_tensors(config, seed=2)
    folder = save(tmp_path / "drafter", config, first, "float32")
    (folder / "README.md").write_text("mine")
    with pytest.raises(DrafterError, match="already there"):
        save(folder, config, second, "float32")
    assert torch.equal(load_tensors(folder)[1]["fc.weight"], first["fc.weight"])
    save(folder, config, second, "float32", overwrite=True)
    assert torch.equal(load_tensors(folder)[1]["fc.weight"], second["fc.weight"])
    assert (folder / "README.md").read_text() == "mine"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_text("x")
    with pytest.raises(DrafterError, match="something other than a checkpoint"):
        save(other, config, second, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drafter", "photos"]


def test_a_mount_point_is_filled_as_it_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's volume."""
    config, folder, rename = edsd_config(), tmp_path / "volume", os.rename
    folder.mkdir()

    def busy(source: Path, target: Path) -> None:
        if folder in (Path(source), Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", busy)
    for seed in (1, 2):
        tensors = random_tensors(config, seed=seed)
        save(folder, config, tensors, "float32", overwrite=True)
        assert torch.equal(load_tensors(folder)[1]["fc.weight"], tensors["fc.weight"])
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"a shard of another one")
        (folder / "README.md").write_text("mine")
    save(folder, config, tensors, "float32", overwrite=True)
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]


def test_a_crash_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = edsd_config()
    folder = save(tmp_path / "drafter", config, random_tensors(config, seed=1), "float32")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(DrafterError, match=r"No space left on device; nothing was changed"):
        save(folder, config, random_tensors(config, seed=2), overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["drafter"]


def test_eagle3_default_taps_survive(tmp_path: Path) -> None:
    config = eagle3_config(target_layer_ids=None)
    assert verify_headers(write_drafter(tmp_path / "a", config)) == config
    assert verify_headers(write_eagle3(tmp_path / "b")).target_layer_ids == (0, 2, 4)
