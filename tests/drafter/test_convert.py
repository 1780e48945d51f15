"""Renaming between layouts: every tensor accounted for, every byte kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.checkpoint.tensors import read_header
from sgl_entropy.drafter.checkpoint import load_tensors, verify_headers
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.drafter.convert import convert
from tests.drafter.tiny import (
    eagle3_config,
    edsd_config,
    random_tensors,
    write_drafter,
    write_eagle3,
    write_edsd,
    write_tokenizer,
)

WEIGHTS = "model.safetensors"


def raw_bytes(folder: Path) -> dict[str, bytes]:
    data = (folder / WEIGHTS).read_bytes()
    return {name: data[e.start : e.end] for name, e in read_header(folder / WEIGHTS).items()}


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (edsd_config(), "model-prefixed"),
        (eagle3_config(), "model-prefixed"),
        (eagle3_config(), "speculators"),
        (eagle3_config(target_layer_ids=None), "speculators"),
    ],
    ids=["edsd-prefixed", "eagle3-prefixed", "eagle3-speculators", "default-taps"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back_keeps_every_byte(
    tmp_path: Path, config: DrafterConfig, layout: str, dtype: torch.dtype
) -> None:
    # 3 odd rows of bfloat16 and a bool tensor: nothing here is aligned by luck.
    source = write_drafter(tmp_path / "a", config, dtype=dtype)
    away = convert(source, tmp_path / "b", to=layout)
    assert (away.source_layout, away.layout) == ("published", layout)
    with pytest.raises(DrafterError):
        verify_headers(tmp_path / "b")
    back = convert(tmp_path / "b", tmp_path / "c")
    assert (back.source_layout, back.layout) == (layout, "published")
    assert raw_bytes(tmp_path / "c") == raw_bytes(source)
    assert verify_headers(tmp_path / "c") == verify_headers(source)
    # The format's own reader agrees with our writer.
    for folder in ("b", "c"):
        assert len(load_file(tmp_path / folder / WEIGHTS)) == len(config.tensor_shapes())


def test_names_of_each_layout(tmp_path: Path) -> None:
    source = write_eagle3(tmp_path / "a")
    convert(source, tmp_path / "prefixed", to="model-prefixed")
    names = raw_bytes(tmp_path / "prefixed").keys()
    assert {
        "model.fc.weight",
        "model.midlayer.hidden_norm.weight",
        "lm_head.weight",
        "d2t",
    } <= names
    convert(source, tmp_path / "speculators", to="speculators")
    names = raw_bytes(tmp_path / "speculators").keys()
    assert {"fc.weight", "layers.0.hidden_norm.weight", "norm.weight", "t2d"} <= names


def test_layer_numbers_change_with_the_layout(tmp_path: Path) -> None:
    # vLLM counts hidden states, so it names one more than target_layer_ids.
    convert(write_eagle3(tmp_path / "a"), tmp_path / "b", to="speculators")
    raw = json.loads((tmp_path / "b" / "config.json").read_text())
    assert raw["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]
    assert raw["architectures"] == ["Eagle3Speculator"]
    assert raw["transformer_layer_config"]["hidden_size"] == 16


def speculators(folder: Path, **changes: object) -> Path:
    """A checkpoint as the speculators library writes it, by hand."""
    tensors = {
        key.replace("midlayer.", "layers.0."): value
        for key, value in random_tensors(eagle3_config()).items()
    }
    tensors["embed_tokens.weight"] = torch.ones(64, 16)
    tensors["verifier_lm_head.weight"] = torch.ones(32, 16)
    layer = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
    }
    raw = {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 32,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
        "transformer_layer_config": layer,
    } | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, str(folder / WEIGHTS))
    return folder


def test_a_speculators_checkpoint_becomes_one_that_sglang_serves(tmp_path: Path) -> None:
    report = convert(speculators(tmp_path / "a"), tmp_path / "b")
    assert report.dropped == ("verifier_lm_head.weight",)
    config, tensors = load_tensors(tmp_path / "b")
    assert config.target_layer_ids == (0, 2, 4)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    expected = random_tensors(eagle3_config())
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    accounted = {old for old, _ in report.tensors} | set(report.dropped)
    assert accounted == load_file(tmp_path / "a" / WEIGHTS).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"transformer_layer_config": None}, "transformer_layer_config"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 3, 5]}, "hidden-state numbers from 1"),
        ({"eagle_aux_hidden_state_layer_ids": "all"}, "hidden-state numbers from 1"),
        ({"draft_vocab_size": -1}, "draft_vocab_size"),
    ],
)
def test_speculators_drafters_that_compute_something_else_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DrafterError, match=message):
        convert(speculators(tmp_path / "a", **changes), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_incomplete_source_is_refused_with_everything_that_is_wrong(tmp_path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in random_tensors(edsd_config()).items()}
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.ones(1)
    source = write_drafter(tmp_path / "a", edsd_config(), tensors=tensors)
    with pytest.raises(DrafterError) as caught:
        convert(source, tmp_path / "b")
    assert "missing: norm.weight" in str(caught.value)
    assert "unexpected: extra" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(edsd_config())
    tensors["model.norm.weight"] = torch.ones(16)
    source = write_drafter(tmp_path / "a", edsd_config(), tensors=tensors)
    with pytest.raises(DrafterError, match=r"are both norm\.weight"):
        convert(source, tmp_path / "b")


def test_the_speculators_layout_has_no_edsd(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="no EDSD drafters"):
        convert(write_edsd(tmp_path / "a"), tmp_path / "b", to="speculators")
    with pytest.raises(DrafterError, match="choose from published, model-prefixed, speculators"):
        convert(tmp_path / "a", tmp_path / "b", to="gguf")


def test_nothing_is_overwritten_without_being_asked(tmp_path: Path) -> None:
    source = write_edsd(tmp_path / "a", seed=1)
    there = write_edsd(tmp_path / "b", seed=2)
    before = raw_bytes(there)
    with pytest.raises(DrafterError, match="already there"):
        convert(source, there)
    assert raw_bytes(there) == before
    convert(source, there, overwrite=True)
    assert raw_bytes(there) == raw_bytes(source)
    with pytest.raises(DrafterError, match="is the source itself"):
        convert(source, tmp_path / "b" / ".." / "a", overwrite=True)
    assert raw_bytes(there) == raw_bytes(source)


def test_the_tokenizer_and_the_model_card_come_along(tmp_path: Path) -> None:
    source = write_edsd(tmp_path / "a")
    write_tokenizer(source, 64)
    (source / "README.md").write_text("card")
    (source / "optimizer.pt").write_bytes(b"not wanted")
    report = convert(source, tmp_path / "b")
    assert report.carried == ("README.md", "tokenizer.json", "tokenizer_config.json")
    assert (tmp_path / "b" / "README.md").read_text() == "card"
    assert not (tmp_path / "b" / "optimizer.pt").exists()
