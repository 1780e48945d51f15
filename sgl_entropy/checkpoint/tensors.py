"""Safetensors files of a checkpoint: their headers, and copies with other names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from sgl_entropy.base import safetensors_header
from sgl_entropy.base.safetensors_header import DTYPE_BYTES, TensorEntry, WeightsError
from sgl_entropy.checkpoint.errors import DrafterError

_COPY_BYTES = 1 << 24


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one safetensors file.

    Raises:
        DrafterError: not safetensors, truncated, or a header that does not fit the file.
    """
    try:
        return safetensors_header.read_header(path)
    except WeightsError as error:
        raise DrafterError(str(error)) from None


def write_renamed(path: Path, tensors: Iterable[tuple[str, TensorEntry]]) -> None:
    """Write one safetensors file with each entry's bytes, unchanged, under a new name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    # Largest item size first, as the format's own writer does: data stays aligned.
    order = sorted(tensors, key=lambda pair: (-DTYPE_BYTES[pair[1].dtype], pair[0]))
    for name, entry in order:
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.num_bytes],
        }
        position += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for _, entry in order:
            with entry.path.open("rb") as source:
                source.seek(entry.start)
                _copy(source, out, entry.num_bytes)


def _copy(source: BinaryIO, out: BinaryIO, count: int) -> None:
    while count:
        block = source.read(min(count, _COPY_BYTES))
        if not block:
            raise DrafterError(f"{source.name}: became shorter while it was read")
        out.write(block)
        count -= len(block)
