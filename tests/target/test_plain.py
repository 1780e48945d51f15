"""The plain target against transformers: the families that it reads, and those that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.target.layers import check_family
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.rotary import frequencies, rotary_of

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "linear scaling": ("Llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "a window of no layer": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16}),
}


def write(folder: Path, family: str, more: dict[str, Any]) -> Any:
    """A random target of transformers, with biases and norms that are not at rest."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", TARGETS)
def test_the_families_equal_transformers(name: str, tmp_path: Path) -> None:
    """Hidden states of every layer and logits, at once and in pieces through the cache."""
    model = write(tmp_path, *TARGETS[name])
    ids = torch.randint(0, SIZES["vocab_size"], (2, 70))
    with torch.no_grad():
        wanted = model(ids, output_hidden_states=True)
    target = PlainTarget.from_folder(tmp_path)
    starts = torch.zeros(2, dtype=torch.long)
    found = target.forward(ids, starts, None, tap_layers=(0, 1))
    torch.testing.assert_close(target.logits(found.final), wanted.logits, atol=2e-4, rtol=2e-4)
    for layer in (0, 1):
        torch.testing.assert_close(
            found.taps[layer], wanted.hidden_states[layer + 1], atol=2e-4, rtol=2e-4
        )
    cache = target.new_cache(2)
    target.forward(ids[:, :50], starts, cache)
    later = target.forward(ids[:, 50:], starts + 50, cache)
    torch.testing.assert_close(
        target.logits(later.final), wanted.logits[:, 50:], atol=2e-4, rtol=2e-4
    )


def test_every_part_of_a_family_is_used(tmp_path: Path) -> None:
    """Biases and norms that were forgotten would be seen: each changes the logits."""
    write(tmp_path, *TARGETS["qwen3"])
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "model.safetensors")
    target = PlainTarget.from_folder(tmp_path)
    ids, starts = torch.randint(0, 90, (1, 9)), torch.zeros(1, dtype=torch.long)
    before = target.forward(ids, starts, None).final
    for name in weights:
        if ".layers.1." in name:
            changed = PlainTarget(target.config, {**weights, name: weights[name] * 1.5})
            assert not torch.allclose(changed.forward(ids, starts, None).final, before), name


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("Gemma", {"head_dim": 8}, "model_type 'gemma'"),
        ("Llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("Mistral", {"sliding_window": 64}, "a sliding window"),
        (
            "Qwen2",
            {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
            "a sliding window",
        ),
        (
            "Llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling 'yarn' is not known",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    family: str, more: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, family, more)
    with pytest.raises(DrafterError, match=message):
        PlainTarget.from_folder(tmp_path)


def test_missing_and_unknown_weights_are_named(tmp_path: Path) -> None:
    write(tmp_path, *TARGETS["qwen3"])
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "model.safetensors")
    config = PlainTarget.from_folder(tmp_path).config
    name = "model.layers.1.self_attn.k_norm.weight"
    with pytest.raises(DrafterError, match=r"layers\.1\.self_attn\.k_norm\.weight is missing"):
        PlainTarget(config, {key: value for key, value in weights.items() if key != name})
    held = dict(weights)
    PlainTarget(config, held)
    assert not [key for key in held if ".layers." in key], "held twice"
    odd = {**weights, "model.layers.2.pre_feedforward_layernorm.weight": torch.ones(32)}
    with pytest.raises(DrafterError, match=r"layernorm\.weight is not known"):
        PlainTarget(config, odd)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    """Where a library reads the weights, which says little: the whole target, its two tensors."""
    write(tmp_path, "Llama", {})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    for read in (PlainTarget.from_folder, read_embedding_and_head):
        with pytest.raises(DrafterError, match=f"{file}: truncated"):
            read(tmp_path)
    file.write_bytes(whole)
    (tmp_path / "config.json").write_text("[" * 100_000)
    for read in (PlainTarget.from_folder, read_embedding_and_head):
        with pytest.raises(ValueError, match=r"config\.json: not valid JSON: nested too deeply"):
            read(tmp_path)


def test_the_base_is_found_where_newer_transformers_keep_it() -> None:
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    assert rotary_of(newer) == (1e6, None)
    assert rotary_of({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}})[0] == 5e5
    assert rotary_of({"rope_theta": 2e4, "rope_scaling": None}) == (2e4, None)
    assert rotary_of({}) == (1e4, None)
    with pytest.raises(DrafterError, match="lacks 'low_freq_factor'"):
        frequencies(8, 1e4, {"rope_type": "llama3", "factor": 8.0})


def test_end_tokens_are_those_of_both_files(tmp_path: Path) -> None:
    """As SGLang takes them: a base model's in one, the chat's in the other."""
    write(tmp_path, "Llama", {"eos_token_id": 5})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5, 9]}')
    assert PlainTarget.from_folder(tmp_path).eos_ids == {5, 7, 9}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": null}')
    assert PlainTarget.from_folder(tmp_path).eos_ids == {5}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(DrafterError, match="generation_config"):
        PlainTarget.from_folder(tmp_path)


def test_weights_that_lie_there_twice_are_read_once(tmp_path: Path) -> None:
    """Mistral's repositories hold them in their own layout, too."""
    from safetensors.torch import save_file

    model = write(tmp_path, "Llama", {})
    (tmp_path / "consolidated.safetensors").write_bytes(b"not to be read")
    assert PlainTarget.from_folder(tmp_path).num_layers == 3
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    names = sorted(weights)
    (tmp_path / "model.safetensors").unlink()
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in files.items():
        save_file({name: weights[name].clone() for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = PlainTarget.from_folder(tmp_path)
    assert torch.equal(found.norm, weights["model.norm.weight"])
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(DrafterError, match=r"names b\.safetensors, which is missing"):
        PlainTarget.from_folder(tmp_path)


def test_a_mistral_without_a_word_of_its_window_has_one() -> None:
    config = {"model_type": "mistral", "max_position_embeddings": 32768}
    with pytest.raises(DrafterError, match="of 4096 tokens"):
        check_family(config)
    check_family({**config, "max_position_embeddings": 4096})
    kinds = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True}
    qwen = {"model_type": "qwen3", "max_position_embeddings": 32768, "sliding_window": 512, **kinds}
    with pytest.raises(DrafterError, match="of 512 tokens"):
        check_family(qwen)
    check_family({**qwen, "layer_types": ["full_attention"] * 2})
