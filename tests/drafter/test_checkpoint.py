"""Checkpoints: sound ones load unchanged; broken ones are one message that names everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgl_entropy.drafter.checkpoint import (
    inspect_checkpoint,
    load_tensors,
    read_config,
    verify_headers,
)
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from tests.drafter.broken import WEIGHTS, Tensors, edsd_with, message_of, shard
from tests.drafter.tiny import (
    eagle3_config,
    edsd_config,
    random_tensors,
    write_drafter,
    write_edsd,
)

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
