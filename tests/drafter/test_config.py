"""The config: published forms are read, and everything broken is one clear message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.drafter.config import (
    EDSD_VARIANT,
    DrafterConfig,
    DrafterError,
    default_eagle3_layer_ids,
    hidden_state_number,
    target_layer_id,
)
from tests.drafter.tiny import eagle3_config, edsd_config

# The authors' EDSD form for Qwen3-8B: 24, 35 in the paper's Table 15.
PUBLISHED_EDSD = {
    "architectures": ["EdsdDraftModel"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 1,
    "vocab_size": 151936,
    "draft_vocab_size": 32000,
    "target_layer_ids": [23, 34],
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
}
# EAGLE-3 for Llama 3.1 8B as its authors publish it: no taps, no rope_theta, no head_dim.
PUBLISHED_EAGLE3 = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
}


def test_published_edsd_config_is_read_unchanged() -> None:
    config = DrafterConfig.from_dict(PUBLISHED_EDSD)
    assert (config.algorithm, config.target_layer_ids) == ("EDSD", (23, 34))
    assert [hidden_state_number(i) for i in config.target_layer_ids or ()] == [24, 35]
    assert config.tap_width == 2 * 4096
    written = config.to_dict()
    assert {k: written[k] for k in PUBLISHED_EDSD} == PUBLISHED_EDSD


def test_published_eagle3_config_is_read_unchanged() -> None:
    config = DrafterConfig.from_dict(PUBLISHED_EAGLE3)
    assert config.algorithm == "EAGLE3"
    assert config.target_layer_ids is None
    assert (config.head_dim, config.rope_theta, config.num_taps) == (128, 10000.0, 3)
    shapes = config.tensor_shapes()
    assert shapes["fc.weight"] == (4096, 12288)
    assert shapes["midlayer.self_attn.q_proj.weight"] == (4096, 8192)


@pytest.mark.parametrize("config", [edsd_config(), eagle3_config(), eagle3_config(
    target_layer_ids=None, target_hidden_size=24, rope_scaling={"rope_type": "linear", "factor": 2}
)], ids=["edsd", "eagle3", "eagle3-other-width"])  # fmt: skip
def test_written_configs_are_read_back(config: DrafterConfig) -> None:
    again = DrafterConfig.from_dict(
        config.to_dict() | {"edfuse_intermediate_size": config.fuse_size}
    )
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("residual", "norm", "tokens"),
    [(True, True, False), (False, False, False), (True, False, True), (False, True, True)],
)
def test_a_variant_has_an_architecture_of_its_own(residual: bool, norm: bool, tokens: bool) -> None:
    """Whoever does not know the options must not read it as the published form."""
    config = edsd_config(fuse_residual=residual, fuse_norm=norm, fuse_tokens=tokens)
    raw = config.to_dict() | {"edfuse_intermediate_size": config.fuse_size}
    assert raw["architectures"] == [EDSD_VARIANT]
    assert DrafterConfig.from_dict(raw) == config
    assert ("embnorm.weight" in config.tensor_shapes()) is norm
    columns = config.tensor_shapes()["midlayer.self_attn.k_proj.weight"][1]
    assert columns == config.hidden_size * (2 if tokens else 1)
    with pytest.raises(DrafterError, match="belong to the architecture EdsdVariantDraftModel"):
        DrafterConfig.from_dict(raw | {"architectures": ["EdsdDraftModel"]})
    with pytest.raises(DrafterError, match="needs edfuse_residual, edfuse_norm, edfuse_tokens"):
        DrafterConfig.from_dict({k: v for k, v in raw.items() if k != "edfuse_norm"})
    with pytest.raises(DrafterError, match="edfuse_residual must be true or false, found 'yes'"):
        DrafterConfig.from_dict(raw | {"edfuse_residual": "yes"})


def test_eagle3_has_no_edfuse_options() -> None:
    with pytest.raises(DrafterError, match="options of EDSD alone"):
        eagle3_config(fuse_residual=True)


def test_layer_numbers_of_the_three_conventions() -> None:
    assert target_layer_id(hidden_state_number(23)) == 23
    assert default_eagle3_layer_ids(32) == (1, 15, 28)
    with pytest.raises(ValueError, match="embedding output"):
        target_layer_id(0)


BAD_VALUES = [
    ("hidden_size", -16),
    ("hidden_size", 1 << 40),
    ("hidden_size", "16"),
    ("hidden_size", True),
    ("hidden_size", [16]),
    ("hidden_size", {"value": 16}),
    ("hidden_size", 16.0),
    ("intermediate_size", 0),
    ("num_attention_heads", 0),
    ("num_attention_heads", "two"),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", False),
    ("num_key_value_heads", 3),
    ("head_dim", 7),
    ("vocab_size", 10**30),
    ("draft_vocab_size", 65),
    ("draft_vocab_size", -1),
    ("target_hidden_size", 0),
    ("target_hidden_size", ""),
    ("max_position_embeddings", 0),
    ("max_position_embeddings", "long"),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", "1e-5"),
    ("rms_norm_eps", 10**400),
    ("rope_theta", float("inf")),
    ("rope_theta", -1.0),
    ("rope_theta", [10000]),
    ("rope_scaling", "yarn"),
    ("num_hidden_layers", 2),
    ("num_hidden_layers", True),
    ("target_layer_ids", []),
    ("target_layer_ids", "1,4"),
    ("target_layer_ids", [4, 1]),
    ("target_layer_ids", [1, 1]),
    ("target_layer_ids", [-1, 4]),
    ("target_layer_ids", [1.0, 4.0]),
    ("target_layer_ids", [[1], 4]),
    ("target_layer_ids", [1, 10**30]),
    ("eagle_config", [1, 4]),
    ("edfuse_intermediate_size", "24"),
    ("edfuse_intermediate_size", True),
    ("tie_word_embeddings", True),
    ("norm_before_residual", True),
    ("attention_bias", True),
    ("hidden_act", "gelu"),
    ("quantization_config", {"quant_method": "fp8"}),
    ("rope_parameters", {"rope_theta": 5e5}),
]


@pytest.mark.parametrize(
    ("key", "value"), BAD_VALUES, ids=[f"{k}={v!r:.20}" for k, v in BAD_VALUES]
)
def test_an_absurd_value_is_refused_by_name(key: str, value: Any) -> None:
    raw = edsd_config().to_dict() | {key: value}
    with pytest.raises(DrafterError) as caught:
        DrafterConfig.from_dict(raw, source="some/config.json")
    message = str(caught.value)
    named = {"edfuse_intermediate_size": "EDFuse size"}.get(key, key)
    assert named in message
    assert all(line.startswith("some/config.json: ") for line in message.splitlines())
    assert len(message) < 400


def test_several_wrong_sizes_are_listed_together() -> None:
    raw = edsd_config().to_dict() | {"hidden_size": -1, "head_dim": "x", "rope_theta": 0}
    with pytest.raises(DrafterError) as caught:
        DrafterConfig.from_dict(raw)
    assert {"hidden_size", "head_dim"} <= set(str(caught.value).replace(":", "").split())


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "draft_vocab_size"])
@pytest.mark.parametrize("absent", [True, False])
def test_missing_and_null_keys_are_named(key: str, absent: bool) -> None:
    raw = edsd_config().to_dict() | {key: None}
    if absent:
        del raw[key]
    with pytest.raises(DrafterError, match=f"missing keys: {key}"):
        DrafterConfig.from_dict(raw)


@pytest.mark.parametrize(
    "architectures",
    [None, [], "EdsdDraftModel", ["Qwen3ForCausalLM"], [["EdsdDraftModel"]], {"a": 1}],
)
def test_unknown_architectures_are_refused_with_the_known_ones(architectures: Any) -> None:
    raw = edsd_config().to_dict() | {"architectures": architectures}
    with pytest.raises(DrafterError, match=r"known: EdsdDraftModel, LlamaForCausalLMEagle3"):
        DrafterConfig.from_dict(raw)


def test_the_speculators_layout_points_to_convert() -> None:
    with pytest.raises(DrafterError, match="drafter convert"):
        DrafterConfig.from_dict({"architectures": ["Eagle3Speculator"]})


def test_disagreeing_taps_are_refused() -> None:
    raw = edsd_config().to_dict()
    raw["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [2, 5]}
    with pytest.raises(DrafterError, match="disagree"):
        DrafterConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[1]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object"),
        (b" " * (2 << 20), "bytes, expected at most"),
    ],
    ids=["cut", "empty", "binary", "deep", "long-integer", "list", "null", "large"],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DrafterError, match=message) as caught:
        DrafterConfig.from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_missing_folder_and_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="no such folder"):
        DrafterConfig.from_folder(tmp_path / "absent")
    with pytest.raises(DrafterError, match=r"config\.json: not found"):
        DrafterConfig.from_folder(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DrafterError, match=r"config\.json"):
        DrafterConfig.from_folder(tmp_path)


def test_from_folder_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_EDSD))
    assert DrafterConfig.from_folder(tmp_path).target_layer_ids == (23, 34)
