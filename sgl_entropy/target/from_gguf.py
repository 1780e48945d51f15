"""A llama model in a GGUF file, written as a Hugging Face folder in float32.

Quantised weights are dequantised, so that serving in float32 is exact to them. A GGUF stores q and
k rows permuted for its own rotary layout, and the tokenizer metadata of SmolLM2's does not say that
digits are split one by one nor which tokens are special: both are restored here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class TargetError(RuntimeError):
    """The small target cannot be fetched or converted; the message says what to do."""


def convert_gguf(gguf_path: Path, out: Path) -> None:
    """Write the GGUF llama model at ``gguf_path`` as a Hugging Face folder ``out`` (new).

    Raises:
        TargetError: the ``gguf`` package is missing or the file is no llama model.
    """
    try:
        import gguf
    except ImportError:
        raise TargetError("the gguf package is missing: pip install 'gguf>=0.17'") from None
    import torch
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(gguf_path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta.get("general.architecture") != "llama":
        raise TargetError(f"{gguf_path}: expected a llama model")
    config = hf_config(meta)
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        name = hf_tensor_name(tensor.name)
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name.endswith("q_proj.weight"):
            values = unpermute(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = unpermute(values, config["num_key_value_heads"])
        weights[name] = torch.from_numpy(np.ascontiguousarray(values))
    out.mkdir(parents=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "tokenizer.json", tokenizer_json(meta))
    _write_json(out / "tokenizer_config.json", tokenizer_config(meta))


def unpermute(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo GGUF's row order of q and k projections.

    GGUF interleaves the two rotary halves of a head (row 2i is half 0, 2i+1 half 1); Hugging Face
    keeps the halves apart.

    Args:
        weight: [heads * head_dim, columns].
    """
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))


def hf_tensor_name(name: str) -> str:
    """The Hugging Face name of a GGUF llama tensor.

    Raises:
        TargetError: a tensor that a llama model with tied embeddings does not have.
    """
    fixed = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    if name in fixed:
        return fixed[name]
    words = name.split(".")
    if len(words) == 4 and words[0] == "blk" and words[2] in parts and words[3] == "weight":
        return f"model.layers.{words[1]}.{parts[words[2]]}.weight"
    raise TargetError(f"unexpected tensor {name!r} in the GGUF file")


def hf_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the model from GGUF metadata."""
    heads = int(meta["llama.attention.head_count"])
    hidden = int(meta["llama.embedding_length"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": int(meta["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(meta["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(meta["tokenizer.ggml.padding_token_id"]),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "max_position_embeddings": int(meta["llama.context_length"]),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_key_value_heads": int(meta["llama.attention.head_count_kv"]),
        "pretraining_tp": 1,
        # The metadata holds 1e-5 rounded to float32.
        "rms_norm_eps": float(f"{float(meta['llama.attention.layer_norm_rms_epsilon']):.3g}"),
        "rope_scaling": None,
        "rope_theta": float(meta["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": int(meta["llama.vocab_size"]),
    }


def special_tokens(meta: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(id, text) of the control tokens (GGUF token type 3), 17 for SmolLM2."""
    control = 3
    kinds = meta["tokenizer.ggml.token_type"]
    return [
        (i, token)
        for i, (token, kind) in enumerate(zip(meta["tokenizer.ggml.tokens"], kinds, strict=True))
        if kind == control
    ]


def tokenizer_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A ``tokenizers`` file: SmolLM's split of digits one by one, then GPT-2's byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in special_tokens(meta)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json``, with the chat template of the GGUF."""
    tokens = meta["tokenizer.ggml.tokens"]

    def token(role: str) -> str:
        return str(tokens[int(meta[f"tokenizer.ggml.{role}_token_id"])])

    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(meta["llama.context_length"]),
        "chat_template": meta["tokenizer.chat_template"],
        "added_tokens_decoder": {
            str(i): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, text in special_tokens(meta)
        },
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
