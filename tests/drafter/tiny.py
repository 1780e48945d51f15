"""Tiny checkpoints with random weights: EDSD and EAGLE-3 drafters, and a llama target for them.

The defaults fit each other: a target of 6 layers, width 16 and 64 tokens; drafters with 32 of
them. Every size is a parameter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sgl_entropy.drafter.config import DrafterConfig

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")


def edsd_config(**changes: Any) -> DrafterConfig:
    """An EDSD drafter's config; ``fuse_size`` 24 is neither d nor the MLP's 32."""
    return _config("EDSD", {"fuse_size": 24, "target_layer_ids": (1, 4)} | changes)


def eagle3_config(**changes: Any) -> DrafterConfig:
    return _config("EAGLE3", {"target_layer_ids": (0, 2, 4)} | changes)


def _config(algorithm: str, changes: dict[str, Any]) -> DrafterConfig:
    sizes: dict[str, Any] = {
        "algorithm": algorithm,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 64,
        "draft_vocab_size": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
    } | changes
    sizes.setdefault("target_hidden_size", sizes["hidden_size"])
    return DrafterConfig(**sizes)


def random_tensors(
    config: DrafterConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random weights, norms near 1, and vocabulary maps of every second token or so."""
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, torch.Tensor] = {}
    for name, shape in config.tensor_shapes().items():
        if name in ("t2d", "d2t"):
            continue
        value = torch.randn(shape, generator=generator)
        out[name] = (1 + 0.1 * value if len(shape) == 1 else 0.2 * value).to(dtype)
    ids = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    ids = ids.sort().values
    out["d2t"] = ids - torch.arange(config.draft_vocab_size)
    out["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    out["t2d"][ids] = True
    return out


def write_drafter(
    folder: Path,
    config: DrafterConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tensors: dict[str, torch.Tensor] | None = None,
    config_changes: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint by the plainest means (not by ``checkpoint.save``).

    ``config_changes`` are put into ``config.json`` as they are; None removes a key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = config.to_dict() | (config_changes or {})
    raw = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    if tensors is None:
        tensors = random_tensors(config, seed=seed, dtype=dtype)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def write_edsd(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    return write_drafter(folder, edsd_config(**changes), seed=seed)


def write_eagle3(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    return write_drafter(folder, eagle3_config(**changes), seed=seed)


def write_target(
    folder: Path,
    *,
    hidden_size: int = 16,
    intermediate_size: int = 32,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 2,
    num_key_value_heads: int = 1,
    vocab_size: int = 64,
    max_position_embeddings: int = 256,
    rope_theta: float = 10000.0,
    rms_norm_eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 0.2,
    tokenizer: bool = True,
) -> Path:
    """A Hugging Face llama folder with random weights that transformers and SGLang load.

    Args:
        scale: standard deviation of the matrices; larger ones give a more peaked model.
        tokenizer: also write a word-level tokenizer of ``vocab_size`` tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head_dim = hidden_size // num_attention_heads
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": max_position_embeddings,
        "rope_theta": rope_theta,
        "rms_norm_eps": rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))
    q, kv = num_attention_heads * head_dim, num_key_value_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, hidden_size),
        "model.norm.weight": (hidden_size,),
        "lm_head.weight": (vocab_size, hidden_size),
    }
    for layer in range(num_hidden_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (q, hidden_size),
            prefix + "self_attn.k_proj.weight": (kv, hidden_size),
            prefix + "self_attn.v_proj.weight": (kv, hidden_size),
            prefix + "self_attn.o_proj.weight": (hidden_size, q),
            prefix + "mlp.gate_proj.weight": (intermediate_size, hidden_size),
            prefix + "mlp.up_proj.weight": (intermediate_size, hidden_size),
            prefix + "mlp.down_proj.weight": (hidden_size, intermediate_size),
            prefix + "input_layernorm.weight": (hidden_size,),
            prefix + "post_attention_layernorm.weight": (hidden_size,),
        }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.1 * value if len(shape) == 1 else scale * value).to(dtype)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if tokenizer:
        write_tokenizer(folder, vocab_size)
    return folder


def write_tokenizer(folder: Path, vocab_size: int, *, word: str = "w") -> None:
    """A fast tokenizer: ``<unk> <s> </s>`` and the words ``w3``, ``w4``, ... by white space."""
    words = [f"{word}{i}" for i in range(len(SPECIAL_TOKENS), vocab_size)]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *words))}
    special = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **special} for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 1 << 20,
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
