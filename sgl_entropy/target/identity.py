"""Which model a folder holds, told by its weights: cheap, and the same for every copy of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_ROWS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Identity:
    """A model's name, for people, and the digest of its weights, which decides.

    The digest covers every tensor's name, dtype, shape and three of its rows (vectors whole):
    training changes some of these, and nothing else does, neither copying nor sharding anew. So
    even a large model takes a moment. Another dtype is another model: its entropies differ.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, folder: str | Path) -> Identity:
        """Of a folder with safetensors.

        Raises:
            ValueError: there are none, or they cannot be read.
        """
        folder = Path(folder).absolute()
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: holds no *.safetensors, by which a model is known")
        tensors: dict[str, bytes] = {}
        for file in files:
            tensors |= _digests(file)
        parts = [name.encode() + b"\0" + tensors[name] for name in sorted(tensors)]
        return cls(_name(folder), hashlib.sha256(b"".join(parts)).hexdigest())

    @classmethod
    def from_dict(cls, held: Any) -> Identity:
        """Raises ValueError for anything but two strings, ``name`` and ``sha256``."""
        if (
            not isinstance(held, Mapping)
            or set(held) != {"name", "sha256"}
            or not all(isinstance(value, str) and value for value in held.values())
        ):
            raise ValueError(f"expected an object with name and sha256, found {held!r:.80}")
        return cls(**held)


def _name(folder: Path) -> str:
    """The folder's; in a hub's cache, whose folders are named by commits, the model's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _digests(path: Path) -> dict[str, bytes]:
    from safetensors import SafetensorError, safe_open

    out = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                held = file.get_slice(name)
                shape = held.get_shape()
                if len(shape) < 2 or not all(shape):
                    rows = [file.get_tensor(name)]
                else:
                    rows = [
                        held[tuple(slice(at, at + 1) for at in _at(shape, share))]
                        for share in _ROWS
                    ]
                digest = hashlib.sha256(f"{held.get_dtype()} {shape}".encode())
                for row in rows:
                    digest.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
                out[name] = digest.digest()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    return out


def _at(shape: list[int], share: float) -> list[int]:
    """Where along all dimensions but the last."""
    return [round(share * (size - 1)) for size in shape[:-1]]
