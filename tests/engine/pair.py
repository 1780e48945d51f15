"""A small target and drafters for it that agree often, but not always, without any training.

The target's next token depends mostly on the current one: its layers are weak, its embedding
and head strong. Each drafter carries the current token's embedding to a copy of the head's rows,
so it predicts the target with its layers left out: mostly right, wrong where context decides or
where the token is not in the draft vocabulary.

Every embedding has a 1 in its first column; that constant lets EDFuse's gate (which has no bias)
be a constant, and EAGLE-3's attention look at its own row.
"""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.drafter.config import DrafterConfig
from tests.drafter import tiny

LAYERS = 6
HIDDEN = 64
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
CONTEXT = 512
MERGES = ('{"', '":', '": ', '",', '"}', "true", "false", "null", "abc", "the", "ing", " a", "  ")
TOKENS = (*tiny.SPECIAL_TOKENS, *string.printable[:95], "\n", *MERGES)
VOCABULARY = len(TOKENS)
DRAFT_VOCABULARY = 96
EOS = TOKENS.index("</s>")


def token_ids(text: str) -> list[int]:
    """Ids of a text, one a character, as the tokenizer encodes it."""
    return [TOKENS.index(character) for character in text]


def write_target(folder: Path, *, layer_scale: float = 0.045, head_scale: float = 0.55) -> Path:
    """The target: ``layer_scale`` sets how much context matters, ``head_scale`` how sure it is."""
    tiny.write_target(
        folder,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        scale=layer_scale,
        tokenizer=False,
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_dim": HEAD_DIM}))
    generator = torch.Generator().manual_seed(7)
    tensors = load_file(folder / "model.safetensors")
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.self_attn."
        for name, shape in {
            "q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "o_proj": (HIDDEN, HEADS * HEAD_DIM),
        }.items():
            scale = 0.3 if name in ("q_proj", "k_proj") else layer_scale
            tensors[f"{prefix}{name}.weight"] = scale * torch.randn(shape, generator=generator)
    embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    embedding[:, 0] = 0
    embedding *= (HIDDEN - 1) ** 0.5 / embedding.norm(dim=1, keepdim=True)
    embedding[:, 0] = 1
    tensors["model.embed_tokens.weight"] = embedding
    head = head_scale * torch.randn(VOCABULARY, HIDDEN, generator=generator)
    tensors["lm_head.weight"] = head
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    return folder


# Never written by the target: its row of the head is far below the others.
BROKEN = TOKENS.index(MERGES[0])


def write_broken_target(folder: Path, target: Path) -> Path:
    """The target with one token whose embedding is NaN, as a bad weight would have it."""
    shutil.copytree(target, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][BROKEN] = float("nan")
    tensors["lm_head.weight"][BROKEN] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_qwen3_target(folder: Path, target: Path) -> Path:
    """The target as a Qwen3: every query and key head is normed, with weights of its own."""
    shutil.copytree(target, folder)
    config = json.loads((folder / "config.json").read_text())
    qwen3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config | qwen3))
    tensors = load_file(folder / "model.safetensors")
    for layer in range(LAYERS):
        for name in ("q_norm", "k_norm"):
            weight = 1 + 0.3 * torch.randn(HEAD_DIM, generator=_generator())
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _config(algorithm: str, **changes: object) -> DrafterConfig:
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "draft_vocab_size": DRAFT_VOCABULARY,
        "max_position_embeddings": CONTEXT,
    }
    make = tiny.edsd_config if algorithm == "EDSD" else tiny.eagle3_config
    return make(**(sizes | changes))


def _shared(
    config: DrafterConfig, target: Path, layer_scale: float = 0.1
) -> dict[str, torch.Tensor]:
    """Weak random weights, the target's head and final norm, a random draft vocabulary."""
    tensors = tiny.random_tensors(config, seed=3)
    for name, value in tensors.items():
        if "midlayer" in name and value.ndim == 2:
            tensors[name] = layer_scale * value
    weights = load_file(target / "model.safetensors")
    ids = tensors["d2t"] + torch.arange(config.draft_vocab_size)
    tensors["lm_head.weight"] = weights["lm_head.weight"][ids].clone()
    tensors["norm.weight"] = weights["model.norm.weight"].clone()
    return tensors


def write_edsd(folder: Path, target: Path) -> Path:
    config = _config("EDSD", fuse_size=HIDDEN, target_layer_ids=(0, 3))
    tensors = _shared(config, target)
    eye = torch.eye(HIDDEN)
    tensors["fc.weight"] = torch.cat([eye, torch.zeros(HIDDEN, HIDDEN)], 1)
    tensors["fc.weight"] += 0.01 * torch.randn(HIDDEN, 2 * HIDDEN, generator=_generator())
    gate = torch.zeros(HIDDEN, HIDDEN)
    gate[:, 0] = 3.0
    tensors["edfuse.gate_proj.weight"] = gate
    tensors["edfuse.up_proj.weight"] = eye.clone()
    tensors["edfuse.down_proj.weight"] = eye / 3.0
    tensors["embnorm.weight"] = torch.ones(HIDDEN)
    return tiny.write_drafter(folder, config, tensors=tensors)


def write_edsd_small(folder: Path, target: Path) -> Path:
    """Half of EDFuse's width, another draft vocabulary, and a layer whose attention matters.

    It sees half of each token's embedding, so it drafts worse than ``write_edsd``'s, and another
    token where a row of its KV cache is missing or wrong.
    """
    config = _config(
        "EDSD",
        fuse_size=HIDDEN // 2,
        target_layer_ids=(0, 3),
        draft_vocab_size=DRAFT_VOCABULARY - 8,
    )
    tensors = _shared(config, target, layer_scale=0.45)
    eye = torch.eye(HIDDEN)
    tensors["fc.weight"] = torch.cat([eye, torch.zeros(HIDDEN, HIDDEN)], 1)
    gate = torch.zeros(HIDDEN // 2, HIDDEN)
    gate[:, 0] = 3.0
    tensors["edfuse.gate_proj.weight"] = gate
    tensors["edfuse.up_proj.weight"] = eye[: HIDDEN // 2].clone()
    tensors["edfuse.down_proj.weight"] = eye[:, : HIDDEN // 2].clone()
    tensors["embnorm.weight"] = torch.ones(HIDDEN)
    return tiny.write_drafter(folder, config, tensors=tensors)


def write_edsd_variant(folder: Path, target: Path) -> Path:
    """The same with all options: f added to the product, no norm, tokens seen by attention."""
    config = _config(
        "EDSD",
        fuse_size=HIDDEN,
        target_layer_ids=(0, 3),
        fuse_residual=True,
        fuse_norm=False,
        fuse_tokens=True,
    )
    tensors = load_file(write_edsd(folder, target) / "model.safetensors")
    for name in ("q", "k", "v"):
        # Tokens come first; what the fused state alone did stays, and they add a little to it.
        weight = tensors[f"midlayer.self_attn.{name}_proj.weight"]
        extra = 0.05 * torch.randn(weight.shape, generator=_generator())
        tensors[f"midlayer.self_attn.{name}_proj.weight"] = torch.cat([extra, weight], 1)
    del tensors["embnorm.weight"]
    # Half of what the product drafts from comes past it now.
    tensors["fc.weight"] *= 0.5
    return tiny.write_drafter(folder, config, tensors=tensors)


def write_eagle3(folder: Path, target: Path) -> Path:
    config = _config("EAGLE3", target_layer_ids=(0, 2, 4))
    tensors = _shared(config, target)
    eye, nothing = torch.eye(HIDDEN), torch.zeros(HIDDEN, HIDDEN)
    tensors["fc.weight"] = torch.cat([eye, nothing, nothing], 1)
    tensors["midlayer.input_layernorm.weight"] = torch.ones(HIDDEN)
    tensors["midlayer.hidden_norm.weight"] = torch.ones(HIDDEN)
    # Each row attends to itself (equal vectors, turned apart by the rotary embedding), and the
    # layer's output swaps the previous token's feature for the current token's embedding.
    for name, rows in (("q", HEADS), ("k", KV_HEADS)):
        weight = torch.zeros(rows * HEAD_DIM, 2 * HIDDEN)
        weight[:, 0] = 6.0
        tensors[f"midlayer.self_attn.{name}_proj.weight"] = weight
    tensors["midlayer.self_attn.v_proj.weight"] = torch.cat([eye, -eye], 1)
    output = torch.zeros(HIDDEN, HEADS, HEAD_DIM)
    for group in range(KV_HEADS):
        rows = slice(group * HEAD_DIM, (group + 1) * HEAD_DIM)
        output[rows, group * HEADS // KV_HEADS] = torch.eye(HEAD_DIM)
    tensors["midlayer.self_attn.o_proj.weight"] = output.flatten(1)
    return tiny.write_drafter(folder, config, tensors=tensors)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def _write_tokenizer(folder: Path) -> None:
    """One token a character (the merged tokens are only ever generated), joined without spaces."""
    tiny.write_tokenizer(folder, VOCABULARY)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": r"[\s\S]"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer["decoder"] = {"type": "Fuse"}
    tokenizer["model"]["vocab"] = {token: i for i, token in enumerate(TOKENS)}
    path.write_text(json.dumps(tokenizer))
