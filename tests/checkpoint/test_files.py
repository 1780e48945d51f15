"""A checkpoint's files and shards: whatever lies there that is not one is named, and never run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.checkpoint.tensors import read_header
from tests.drafter.broken import INDEX, WEIGHTS, message_of, shard
from tests.drafter.tiny import (
    write_edsd,
)


class Bomb:
    """Unpickling this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", WEIGHTS])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_edsd(tmp_path / "drafter")
    (folder / WEIGHTS).unlink()
    trace = tmp_path / "ran"
    if kind == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"fc.weight": Bomb(trace)}, folder / name)
    message = message_of(folder)
    assert "pickle" in message
    assert name in message
    assert not trace.exists()


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = write_edsd(tmp_path) / WEIGHTS
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) // 2, 100, 8, 3, 0):
        path.write_bytes(whole[:kept])
        message = message_of(tmp_path)
        assert "truncated" in message or "not a safetensors file" in message
        assert str(path) in message
    path.write_bytes(whole + b"x")
    assert "damaged" in message_of(tmp_path)


def header_file(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 1 << 44]}},
        {"a": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": None},
        {"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}},
        b'{"a": ' + b"[" * 50_000,
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}',
        b"{\xff}",
    ],
    ids=lambda h: str(h)[:40],
)
def test_lying_headers_are_refused_before_anything_is_allocated(
    tmp_path: Path, header: object
) -> None:
    write_edsd(tmp_path)
    header_file(tmp_path / WEIGHTS, header, b"\0" * 4)
    message = message_of(tmp_path)
    assert "damaged" in message or "truncated" in message or "twice" in message
    assert str(tmp_path / WEIGHTS) in message
    assert len(message) < 600


def test_a_header_larger_than_the_file_is_truncation(tmp_path: Path) -> None:
    write_edsd(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert "its header claims 4,611,686,018,427,387,904 bytes" in message_of(tmp_path)


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    # 0x0280 = 640 bytes of header: the file begins with a pickle's first two bytes.
    text = json.dumps({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}).ljust(640)
    header_file(tmp_path / WEIGHTS, text.encode(), b"\1")
    assert (tmp_path / WEIGHTS).read_bytes()[:2] == b"\x80\x02"
    assert read_header(tmp_path / WEIGHTS)["a"].shape == (1,)


def test_a_git_lfs_pointer_says_so(tmp_path: Path) -> None:
    write_edsd(tmp_path)
    (tmp_path / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in message_of(tmp_path)


def test_two_files_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    write_edsd(tmp_path)
    (tmp_path / "other.safetensors").write_bytes((tmp_path / WEIGHTS).read_bytes())
    assert "several safetensors files (model.safetensors, other" in message_of(tmp_path)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    assert message_of(tmp_path / "absent").count("no such folder") == 1


# --- shards ----------------------------------------------------------------------------------


def test_a_missing_shard_is_named_and_its_tensors_are_not_called_missing(tmp_path: Path) -> None:
    shard(write_edsd(tmp_path))
    (tmp_path / "b.safetensors").unlink()
    message = message_of(tmp_path)
    assert "names b.safetensors, which is missing" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "/etc/passwd", "sub/b.safetensors", "..\\b.safetensors", "..", 7]
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: object) -> None:
    folder = write_edsd(tmp_path / "drafter")
    shard(folder)
    (tmp_path / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {
        key: name if value == "b.safetensors" else value
        for key, value in index["weight_map"].items()
    }
    (folder / INDEX).write_text(json.dumps(index))
    assert "is not the plain name of a .safetensors file" in message_of(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    shard(write_edsd(tmp_path))
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["ghost"] = "a.safetensors"
    moved = next(k for k, v in index["weight_map"].items() if v == "b.safetensors")
    index["weight_map"][moved] = "a.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = message_of(tmp_path)
    assert "says that a.safetensors holds ghost; it does not" in message
    assert f"does not list {moved}, which b.safetensors holds" in message


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    shard(write_edsd(tmp_path))
    (tmp_path / INDEX).write_text(content)
    assert str(tmp_path / INDEX) in message_of(tmp_path)
