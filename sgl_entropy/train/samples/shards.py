"""The shards of a feature store: written at once or not at all, and checked against their records.

``store`` says what a shard and its record hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sgl_entropy.base.disk import file_sha256, full_disk, is_full, naming_full_disk

RECORD = ".json"
# Finished sequences a shard holds.
SHARD_SEQUENCES = 64


@dataclass(frozen=True)
class Sample:
    """One sequence of n tokens: ``tokens`` int64 [n], and for each but the last: ``features``
    [n-1, taps*d], ``final`` [n-1, d], ``entropy`` float32 [n-1], ``best`` int64 [n-1]."""

    prompt_id: int
    prompt_length: int
    tokens: Tensor
    features: Tensor
    final: Tensor
    entropy: Tensor
    best: Tensor

    @property
    def answer_rows(self) -> int:
        """Draft positions of the answer: its tokens but the first."""
        return len(self.tokens) - 1 - self.prompt_length


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write ``samples`` under ``path``, with its record, at once or not at all.

    Raises:
        OSError: no room, say; names the shard, of which nothing is left.
    """
    tensors = {
        "tokens": torch.cat([s.tokens for s in samples]).to(torch.int32),
        "lengths": torch.tensor([len(s.tokens) for s in samples]),
        "prompt_lengths": torch.tensor([s.prompt_length for s in samples]),
        "prompt_ids": torch.tensor([s.prompt_id for s in samples]),
        "features": torch.cat([s.features for s in samples]).to(torch.bfloat16),
        "final": torch.cat([s.final for s in samples]).to(torch.bfloat16),
        "entropy": torch.cat([s.entropy for s in samples]).float(),
        "best": torch.cat([s.best for s in samples]).to(torch.int32),
    }
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        record = {
            "bytes": partial.stat().st_size,
            "sha256": file_sha256(partial),
            "sequences": len(samples),
            "answer_tokens": sum(len(s.tokens) - s.prompt_length for s in samples),
        }
        path.with_suffix(RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        if is_full(error):
            raise OSError(full_disk(path, error)) from error
        raise OSError(f"{path} could not be written: {error}") from error


def shard_problem(path: Path, *, whole: bool) -> str | None:
    """What is wrong with a shard, compared with its record; None = nothing.

    Args:
        whole: read and hash the whole file, not only its size.
    """
    record = path.with_suffix(RECORD)
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        size, digest = int(known["bytes"]), str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its record {record.name} cannot be read: {error!r}"
    actual = path.stat().st_size
    if actual != size:
        return f"{actual} bytes, expected {size}"
    if whole and file_sha256(path) != digest:
        return "its sha256 is not the recorded one"
    return None


def flush_shard(
    store: Path, number: int, samples: Sequence[Sample], tokens: int, started: float
) -> None:
    """Write a shard of worker ``number`` and a line on its progress: answer tokens since
    ``started`` (time.monotonic)."""
    first = min(s.prompt_id for s in samples)
    name = f"w{number}-{first:06d}-{len(samples)}-{int(time.time())}"
    write_shard(store / f"{name}.safetensors", samples)
    record = {
        "time": round(time.time(), 1),
        "worker": number,
        "sequences": len(samples),
        "answer_tokens": tokens,
        "tokens_per_s": round(tokens / (time.monotonic() - started), 1),
    }
    path = store / "generate.jsonl"
    with naming_full_disk(path), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
