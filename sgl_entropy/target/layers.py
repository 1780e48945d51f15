"""The targets that ``PlainTarget`` reads, and a decoder layer's weights in its form.

The llama family: RMSNorm, rotary attention with grouped heads, a gated SiLU MLP. Members differ by
biases (Qwen2's q, k and v; llama's ``attention_bias`` and ``mlp_bias``) and by a norm of each
query and key head (Qwen3), which is seen from the weights themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
_NORMS = {"input_layernorm": "in", "post_attention_layernorm": "post"}
_HEAD_NORMS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
# By our name, the projections that are one matrix here.
_MATRICES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def check_family(config: Mapping[str, Any]) -> None:
    """Raises DrafterError for a target that ``PlainTarget`` would compute wrongly."""
    kind = config.get("model_type")
    if kind not in FAMILY:
        raise DrafterError(
            f"only targets of the llama family are read here ({', '.join(FAMILY)}), found "
            f"model_type {kind!r}"
        )
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise DrafterError(f"target: hidden_act {act!r} is not known here (known: silu)")
    window = _window(config)
    if window is not None and window < int(config["max_position_embeddings"]):
        raise DrafterError(f"target: a sliding window (of {window} tokens) is not known here")


def _window(config: Mapping[str, Any]) -> int | None:
    """Tokens that some layer's attention is limited to, by transformers' defaults; None = none."""
    if config["model_type"] == "mistral":
        window = config.get("sliding_window", 4096)
        return None if window is None else int(window)
    if not config.get("use_sliding_window"):  # of Qwen2 and Qwen3; llamas have none
        return None
    kinds = config.get("layer_types")
    if kinds is None:
        windowed = int(config["num_hidden_layers"]) > int(config.get("max_window_layers", 28))
    else:
        windowed = "sliding_attention" in kinds
    window = config.get("sliding_window", 4096)
    return int(window) if windowed and window is not None else None


def take_layer(weights: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """The weights of one decoder layer: norms, ``qkv``, ``o``, ``gate_up``, ``down`` and biases.

    Args:
        weights: by their Hugging Face names; those of the layer are taken out of it, so that
            memory holds them once.

    Raises:
        DrafterError: one is missing, or there is one that is not known.
    """
    at = f"model.layers.{index}."
    names = [name for name in weights if name.startswith(at)]
    own = {name[len(at) :]: weights.pop(name) for name in names}
    layer: dict[str, Tensor] = {}
    try:
        for name, ours in _NORMS.items():
            layer[ours] = own.pop(f"{name}.weight")
        for ours, parts in _MATRICES.items():
            layer[ours] = torch.cat([own.pop(f"{part}.weight") for part in parts])
            if any(f"{part}.bias" in own for part in parts):
                layer[f"{ours}_bias"] = torch.cat([own.pop(f"{part}.bias") for part in parts])
        if any(f"{name}.weight" in own for name in _HEAD_NORMS):
            for name, ours in _HEAD_NORMS.items():
                layer[ours] = own.pop(f"{name}.weight")
    except KeyError as error:
        raise DrafterError(f"target: {at}{error.args[0]} is missing") from None
    odd = [name for name in own if not name.endswith("rotary_emb.inv_freq")]
    if odd:
        raise DrafterError(f"target: {at}{odd[0]} is not known here: another kind of layer")
    return layer
