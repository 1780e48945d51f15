"""Checkpoints: sound ones load unchanged; broken ones are one message that names everything."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.drafter.checkpoint import (
    inspect_checkpoint,
    load_tensors,
    read_config,
    save,
    verify_headers,
)
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.drafter.tensorfile import read_header
from tests.drafter.tiny import (
    eagle3_config,
    edsd_config,
    random_tensors,
    write_drafter,
    write_eagle3,
    write_edsd,
)

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


# --- sound checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [edsd_config(), eagle3_config()], ids=["edsd", "eagle3"])
def test_published_checkpoints_load_unchanged(
    tmp_path: Path, config: DrafterConfig, dtype: torch.dtype
) -> None:
    tensors = random_tensors(config, dtype=dtype)
    folder = write_drafter(tmp_path, config, tensors=tensors)
    assert read_config(folder) == verify_headers(folder) == config
    loaded_config, loaded = load_tensors(folder)
    assert loaded_config == config
    assert loaded.keys() == config.tensor_shapes().keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert [f.level for f in inspect_checkpoint(folder)] == ["ok"]


def test_edfuse_width_comes_from_the_header(tmp_path: Path) -> None:
    assert read_config(write_edsd(tmp_path, fuse_size=20)).fuse_size == 20


def test_header_checks_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    folder = write_edsd(tmp_path)
    code = (
        "import sys; from sgl_entropy.drafter.checkpoint import verify_headers; "
        f"verify_headers({str(folder)!r}); "
        "print([m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_shards_load_like_a_single_file(tmp_path: Path) -> None:
    folder = write_edsd(tmp_path)
    _, whole = load_tensors(folder)
    shard(folder)
    _, loaded = load_tensors(folder)
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_t2d_may_be_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(edsd_config())
    folder = edsd_with(tmp_path, lambda t: t.pop("t2d"))
    assert torch.equal(load_tensors(folder)[1]["t2d"], tensors["t2d"])


def test_the_whole_vocabulary_needs_no_maps(tmp_path: Path) -> None:
    folder = edsd_with(tmp_path, lambda t: (t.pop("t2d"), t.pop("d2t")), draft_vocab_size=64)
    _, loaded = load_tensors(folder)
    assert torch.equal(loaded["d2t"], torch.zeros(64, dtype=torch.int64))
    assert loaded["t2d"].all()


def test_the_targets_embedding_is_tolerated_and_not_loaded(tmp_path: Path) -> None:
    folder = edsd_with(tmp_path, lambda t: t.update({"embed_tokens.weight": torch.ones(64, 16)}))
    assert "embed_tokens.weight" not in load_tensors(folder)[1]
    folder = edsd_with(tmp_path, lambda t: t.update({"embed_tokens.weight": torch.ones(63, 16)}))
    assert "embed_tokens.weight: expected shape [64, 16], found [63, 16]" in message_of(folder)


def test_another_width_than_the_targets_needs_an_embedding_of_its_own(tmp_path: Path) -> None:
    config = eagle3_config(target_hidden_size=24)
    folder = write_drafter(tmp_path, config)
    assert "missing: embed_tokens.weight" in message_of(folder)
    tensors = random_tensors(config) | {"embed_tokens.weight": torch.ones(64, 16)}
    write_drafter(folder, config, tensors=tensors)
    assert load_tensors(folder)[1]["embed_tokens.weight"].shape == (64, 16)


# --- tensors that are not as they should be --------------------------------------------------


def test_missing_unexpected_misshapen_and_mistyped_are_listed_together(tmp_path: Path) -> None:
    def break_it(tensors: Tensors) -> None:
        del tensors["norm.weight"]
        tensors["midlayer.self_attn.q_norm.weight"] = torch.ones(8)
        tensors["lm_head.weight"] = torch.ones(31, 16)
        tensors["embnorm.weight"] = torch.ones(16, dtype=torch.float64)
        tensors["t2d"] = tensors["t2d"].to(torch.uint8)
        tensors["d2t"] = tensors["d2t"].to(torch.int32)

    message = message_of(edsd_with(tmp_path, break_it))
    assert "6 problems" in message
    for part in (
        "missing: norm.weight, expected F32/F16/BF16 [16]",
        "unexpected: midlayer.self_attn.q_norm.weight, F32 [8]",
        "lm_head.weight: expected shape [32, 16], found [31, 16]",
        "embnorm.weight: expected F32 or F16 or BF16, found F64",
        "t2d: expected BOOL, found U8",
        "d2t: expected I64, found I32",
    ):
        assert part in message


@pytest.mark.parametrize("name", sorted(edsd_config().tensor_shapes().keys() - {"t2d"}))
def test_no_single_tensor_may_be_missing(tmp_path: Path, name: str) -> None:
    folder = edsd_with(tmp_path, lambda t: t.pop(name))
    assert f"missing: {name}" in message_of(folder)


def test_without_any_edfuse_tensor_all_three_are_missing(tmp_path: Path) -> None:
    def break_it(tensors: Tensors) -> None:
        for part in ("gate", "up", "down"):
            del tensors[f"edfuse.{part}_proj.weight"]

    folder = edsd_with(tmp_path, break_it)
    assert message_of(folder).count("missing: edfuse.") == 3
    with pytest.raises(DrafterError, match=r"no edfuse\.gate_proj\.weight"):
        read_config(folder)


def test_edfuse_parts_must_agree_on_the_width(tmp_path: Path) -> None:
    folder = edsd_with(tmp_path, lambda t: t.update({"edfuse.down_proj.weight": torch.ones(16, 9)}))
    assert "edfuse.down_proj.weight: expected shape [16, 24], found [16, 9]" in message_of(folder)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_flat_or_empty_gate_is_refused(tmp_path: Path, rows: int) -> None:
    def break_it(tensors: Tensors) -> None:
        tensors["edfuse.gate_proj.weight"] = torch.ones(rows, 16) if not rows else torch.ones(16)

    assert "edfuse" in message_of(edsd_with(tmp_path, break_it)).lower()


def test_taps_that_do_not_fit_fc_are_explained(tmp_path: Path) -> None:
    folder = edsd_with(tmp_path, lambda t: t.update({"fc.weight": torch.ones(16, 48)}))
    message = message_of(folder)
    assert "fc takes 3 layers of width 16, but the config taps 2 ([1, 4])" in message
    eagle = write_drafter(
        tmp_path / "eagle", eagle3_config(target_layer_ids=(1, 4)),
        config_changes={"eagle_config": None},
    )  # fmt: skip
    assert "fc takes 2 layers" in message_of(eagle)
    assert "three default layers" in message_of(eagle)


def test_tensors_of_the_other_algorithm_are_recognised(tmp_path: Path) -> None:
    edsd = write_drafter(tmp_path / "a", edsd_config(), tensors=random_tensors(eagle3_config()))
    assert 'set architectures to ["LlamaForCausalLMEagle3"]' in message_of(edsd)
    eagle = write_drafter(tmp_path / "b", eagle3_config(), tensors=random_tensors(edsd_config()))
    assert 'set architectures to ["EdsdDraftModel"]' in message_of(eagle)


def test_another_layout_points_to_convert(tmp_path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in random_tensors(eagle3_config()).items()}
    folder = write_drafter(tmp_path, eagle3_config(), tensors=tensors)
    message = message_of(folder)
    assert "model-prefixed" in message
    assert "drafter convert" in message
    assert len(message.splitlines()) == 1


def test_config_and_weight_files_are_reported_together(tmp_path: Path) -> None:
    folder = write_edsd(tmp_path)
    (folder / "config.json").write_text("[]")
    (folder / WEIGHTS).unlink()
    message = message_of(folder)
    assert "expected a JSON object" in message
    assert "no weights found" in message


# --- values ----------------------------------------------------------------------------------


def test_nan_and_infinity_are_named_with_their_counts(tmp_path: Path) -> None:
    def break_it(tensors: Tensors) -> None:
        tensors["fc.weight"][0, :3] = float("nan")
        tensors["norm.weight"][5] = float("-inf")

    message = message_of(edsd_with(tmp_path, break_it))
    assert "fc.weight: 3 NaN and 0 infinite of 512 values" in message
    assert "norm.weight: 0 NaN and 1 infinite of 16 values" in message


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (31, 33, "d2t: 1 draft ids lead outside the vocabulary of 64 (draft id 31 to token 64)"),
        (0, -1, "draft id 0 to token -1"),
        (3, 2**63 - 1, "outside the vocabulary"),
    ],
)
def test_a_foreign_vocabulary_map_is_refused(
    tmp_path: Path, index: int, value: int, message: str
) -> None:
    folder = edsd_with(tmp_path, lambda t: t["d2t"].__setitem__(index, value))
    assert message in message_of(folder)


def test_repeated_and_disagreeing_maps_are_refused(tmp_path: Path) -> None:
    folder = edsd_with(tmp_path, lambda t: t["d2t"].__setitem__(1, t["d2t"][0] - 1))
    message = message_of(folder)
    assert "1 draft ids lead to a token that another one has" in message
    assert "t2d: disagrees with d2t about 1 tokens" in message
    folder = edsd_with(tmp_path, lambda t: t["t2d"].logical_not_())
    assert "t2d: disagrees with d2t about 64 tokens" in message_of(folder)


def test_an_unsorted_map_is_a_map(tmp_path: Path) -> None:
    def swap(tensors: Tensors) -> None:
        ids = tensors["d2t"] + torch.arange(32)
        tensors["d2t"] = ids.flip(0) - torch.arange(32)

    load_tensors(edsd_with(tmp_path, swap))


# --- files -----------------------------------------------------------------------------------


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


# --- saving ----------------------------------------------------------------------------------


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
