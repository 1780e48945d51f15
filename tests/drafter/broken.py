"""Checkpoints as tests break them: helpers of the test_checkpoint files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.drafter.checkpoint import load_tensors
from sgl_entropy.drafter.config import DrafterError
from tests.drafter.tiny import edsd_config, random_tensors, write_drafter

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def edsd_with(tmp_path: Path, change: Callable[[Tensors], Any], **sizes: Any) -> Path:
    config = edsd_config(**sizes)
    tensors = random_tensors(config)
    change(tensors)
    return write_drafter(tmp_path / "drafter", config, tensors=tensors)


def message_of(folder: Path) -> str:
    with pytest.raises(DrafterError) as caught:
        load_tensors(folder)
    return str(caught.value)


def shard(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> None:
    """Split a single file in two with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    half = len(tensors) // 2
    parts = (dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:]))
    weight_map = {}
    for name, part in zip(names, parts, strict=True):
        save_file(part, str(folder / name))
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
