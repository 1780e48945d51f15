"""Safetensors files by their headers: what is inside, without loading a tensor.

The format (huggingface/safetensors): 8 bytes little-endian header length, a JSON header of
``name -> {dtype, shape, data_offsets}``, the data. Nothing here unpickles anything, and a header
is believed only after its sizes have been checked against the file's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sgl_entropy.checkpoint.errors import DrafterError

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
_MAX_HEADER = 100_000_000  # the format's own limit
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's header entry. ``start`` and ``end`` are byte positions in ``path``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


def refuse_pickle(path: Path, first: bytes) -> None:
    """Raise if the first bytes are a pickle's, a zip's (torch.save) or a Git LFS pointer's."""
    if len(first) >= 9 and first[8:9] == b"{":
        return  # a safetensors length may begin with a pickle's bytes; its JSON settles it
    if first[:2] == b"PK" or (first[:1] == b"\x80" and first[1:2] in b"\x00\x01\x02\x03\x04\x05"):
        raise DrafterError(
            f"{path}: a pickle (torch.save) file, not safetensors; it is refused because loading "
            "a pickle runs code. Save the weights as safetensors"
        )
    if first.startswith(b"version https://git-lfs"):
        raise DrafterError(
            f"{path}: a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
        )


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one safetensors file.

    Raises:
        DrafterError: not safetensors, truncated, or a header that does not fit the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(32)
            refuse_pickle(path, first)
            header_bytes = int.from_bytes(first[:8], "little")
            if len(first) < 9 or first[8:9] != b"{":
                raise DrafterError(f"{path}: not a safetensors file ({size:,} bytes)")
            if header_bytes > _MAX_HEADER or header_bytes > size - 8:
                raise DrafterError(
                    f"{path}: truncated or damaged: its header claims {header_bytes:,} bytes, the "
                    f"file has {size:,}; copy or download it again"
                )
            file.seek(8)
            header = _parse(path, file.read(header_bytes))
    except OSError as error:
        raise DrafterError(f"{path}: cannot be read: {error.strerror}") from None
    return _entries(path, header, 8 + header_bytes, size)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise DrafterError(f"{path}: the header names a tensor twice")
        return out

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except DrafterError:
        raise
    except (ValueError, RecursionError):
        raise DrafterError(f"{path}: damaged: its safetensors header is not valid JSON") from None
    if not isinstance(header, dict):
        raise DrafterError(f"{path}: damaged: its safetensors header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _entries(
    path: Path, header: dict[str, Any], data_start: int, size: int
) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for name, raw in header.items():
        fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
        dtype = str(fields.get("dtype"))
        shape = _counts(fields.get("shape"))
        offsets = _counts(fields.get("data_offsets"))
        if dtype not in DTYPE_BYTES or shape is None or offsets is None or len(offsets) != 2:
            raise DrafterError(
                f"{path}: damaged: the header entry of {name} must have a known dtype, a shape "
                f"and two data_offsets, found {str(raw)[:120]}"
            )
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if offsets[1] - offsets[0] != expected:
            raise DrafterError(
                f"{path}: damaged: {name} is {dtype} {shape}, which needs {expected:,} "
                f"bytes, but its data_offsets hold {offsets[1] - offsets[0]:,}"
            )
        entries[name] = TensorEntry(
            name, dtype, tuple(shape), path, data_start + offsets[0], data_start + offsets[1]
        )
    position = data_start
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        if entry.start != position:
            raise DrafterError(
                f"{path}: damaged: {entry.name} should start at byte {position:,}, its header "
                f"says {entry.start:,}"
            )
        position = entry.end
    if position != size:
        state = "truncated" if size < position else "damaged"
        raise DrafterError(
            f"{path}: {state}: its header describes {position:,} bytes, the file has {size:,}; "
            "copy or download it again"
        )
    return entries


def _counts(value: object) -> list[int] | None:
    """``value`` if it is a list of sizes, else None."""
    if isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 48 for v in value
    ):
        return value
    return None


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
