"""Which model a folder holds, told by its weights: cheap, and the same for every copy of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sgl_entropy.base.json_file import read_object
from sgl_entropy.base.safetensors_header import TensorEntry, read_header

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
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
        """The identity of a folder's safetensors: those that its index names, else
        ``model.safetensors``, else all. (Some repositories hold the weights a second time, in
        another layout, beside them.)

        Raises:
            ValueError: no such folder, none in it, or they cannot be read.
        """
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; a model is a folder with *.safetensors")
        tensors: dict[str, bytes] = {}
        for file in _files(folder):
            tensors |= _digests(file)
        if not tensors:
            raise ValueError(f"{folder}: holds no *.safetensors, by which a model is known")
        parts = [name.encode() + b"\0" + tensors[name] for name in sorted(tensors)]
        return cls(_name(folder), hashlib.sha256(b"".join(parts)).hexdigest())


def _name(folder: Path) -> str:
    """The folder's; in a hub's cache, whose folders are named by commits, the model's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        names = read_object(index, limit=1 << 26).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
            raise ValueError(f"{index}: expected an object weight_map, from tensors to files")
        return [folder / name for name in sorted({*names.values()})]
    single = folder / _SINGLE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _digests(path: Path) -> dict[str, bytes]:
    """A digest for each tensor."""
    entries = read_header(path).values()
    with path.open("rb") as file:
        return {entry.name: _digest(file, entry) for entry in entries}


def _digest(file: BinaryIO, entry: TensorEntry) -> bytes:
    shape = list(entry.shape)
    digest = hashlib.sha256(f"{entry.dtype} {shape}".encode())
    if len(shape) < 2 or not all(shape):
        starts, length = [0], entry.num_bytes
    else:
        length = entry.num_bytes // math.prod(shape[:-1])
        starts = [length * _row(shape, share) for share in _ROWS]
    for start in starts:
        file.seek(entry.start + start)
        digest.update(file.read(length))
    return digest.digest()


def _row(shape: list[int], share: float) -> int:
    """The number of the row that lies at ``share`` of every dimension but the last."""
    number = 0
    for size in shape[:-1]:
        number = number * size + round(share * (size - 1))
    return number
