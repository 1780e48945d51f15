"""Safetensors files by their headers: what is inside, without loading a tensor.

The format (huggingface/safetensors): 8 bytes little-endian header length, a JSON header of
``name -> {dtype, shape, data_offsets}``, the data. Nothing here unpickles anything, and a header
is believed only after its sizes have been checked against the file's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
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
    "C64": 8,
}
_MAX_HEADER = 100_000_000  # the format's own limit


class WeightsError(ValueError):
    """Not safetensors, truncated or damaged; the message names the file."""


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
        raise WeightsError(
            f"{path}: a pickle (torch.save) file, not safetensors; it is refused because loading "
            "a pickle runs code. Save the weights as safetensors"
        )
    if first.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: a Git LFS pointer, not the weights: fetch them with `git lfs pull`"
        )


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of one safetensors file.

    Raises:
        WeightsError: not safetensors, truncated, or a header that does not fit the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(32)
            refuse_pickle(path, first)
            header_bytes = int.from_bytes(first[:8], "little")
            if len(first) < 9 or first[8:9] != b"{":
                raise WeightsError(f"{path}: not a safetensors file ({size:,} bytes)")
            if header_bytes > _MAX_HEADER or header_bytes > size - 8:
                raise WeightsError(
                    f"{path}: truncated or damaged: its header claims {header_bytes:,} bytes, the "
                    f"file has {size:,}; copy or download it again"
                )
            file.seek(8)
            header = _parse(path, file.read(header_bytes))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    return _entries(path, header, 8 + header_bytes, size)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise WeightsError(f"{path}: the header names a tensor twice")
        return out

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: damaged: its safetensors header is not valid JSON") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: damaged: its safetensors header is no JSON object")
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
            raise WeightsError(
                f"{path}: damaged: the header entry of {name} must have a known dtype, a shape "
                f"and two data_offsets, found {str(raw)[:120]}"
            )
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if offsets[1] - offsets[0] != expected:
            raise WeightsError(
                f"{path}: damaged: {name} is {dtype} {shape}, which needs {expected:,} "
                f"bytes, but its data_offsets hold {offsets[1] - offsets[0]:,}"
            )
        entries[name] = TensorEntry(
            name, dtype, tuple(shape), path, data_start + offsets[0], data_start + offsets[1]
        )
    position = data_start
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        if entry.start != position:
            raise WeightsError(
                f"{path}: damaged: {entry.name} should start at byte {position:,}, its header "
                f"says {entry.start:,}"
            )
        position = entry.end
    if position != size:
        state = "truncated" if size < position else "damaged"
        raise WeightsError(
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
