"""Where a training stands, kept in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

_CHECKPOINT = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state``, whole or not at all."""
    path = folder / _CHECKPOINT
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.rename(path)


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint; None where there is none."""
    path = folder / _CHECKPOINT
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None


def refuse_other(folder: Path, held: dict[str, Any], identity: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the checkpoint ``held`` is of another run than ``identity``.
    """
    if held["identity"] != identity:
        differ = [k for k in identity if held["identity"].get(k) != identity[k]]
        raise ValueError(
            f"{folder / _CHECKPOINT} is of another run (its {', '.join(differ)} differ): "
            f"remove it or train into another folder"
        )


def digest(folder: Path) -> str:
    """sha256 of a drafter's weights."""
    sums = [hashlib.sha256(f.read_bytes()) for f in sorted(folder.glob("*.safetensors"))]
    return "-".join(digest.hexdigest() for digest in sums)
