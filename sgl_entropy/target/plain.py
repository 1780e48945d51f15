"""A target in plain torch: the hidden states a drafter taps, and its own KV cache.

The reference for everything that needs the target outside SGLang: regenerating training answers,
collecting features in the same pass, and judging a drafter offline. It follows Hugging Face's
llama, Qwen2 and Qwen3 exactly (tests compare them), handles a batch of sequences of different
lengths, and never splits a batch over sequences: one matmul a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.files import target_files
from sgl_entropy.target.config import end_tokens, read_target_config
from sgl_entropy.target.layers import check_family, take_layer
from sgl_entropy.target.rotary import apply_rotary, rotary_of, rotary_tables


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm with float32 statistics, in x's dtype, as Hugging Face's llama computes it."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of grouped query heads, as two batched matmuls.

    The heads that share a key head become rows of one matrix: on a CPU this is several times
    faster than torch's fused attention when there are few query rows.

    Args:
        query: [batch, n, heads, head_dim]; key, value: [batch, kv_heads, length, head_dim].
        mask: bool [batch, n, length], True = may attend; None = everything.

    Returns:
        [batch, n, heads * head_dim].
    """
    batch, n, heads, head_dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    group = heads // kv_heads
    rows = query.reshape(batch, n, kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch, kv_heads, group * n, head_dim) * head_dim**-0.5
    scores = torch.matmul(rows, key.transpose(-1, -2))
    if mask is not None:
        grouped = mask[:, None, None].expand(batch, 1, group, n, length)
        grouped = grouped.reshape(batch, 1, group * n, length)
        scores = scores.masked_fill(~grouped, float("-inf"))
    out = torch.matmul(torch.softmax(scores, dim=-1), value)
    out = out.reshape(batch, kv_heads, group, n, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, n, heads * head_dim)


@dataclass
class TargetCache:
    """Keys and values of ``slots`` sequences: per layer [slots, kv_heads, length, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    # Attention reads whole, contiguous tensors: slices of them would be copied by every matmul,
    # so the length follows what is needed, in steps.
    STEP = 64

    @property
    def length(self) -> int:
        """Rows a slot can hold now."""
        return self.keys[0].shape[2]

    def resize(self, needed: int) -> None:
        """Make room for ``needed`` rows a slot; shrink where far more is allocated."""
        wanted = -(-needed // self.STEP) * self.STEP
        if self.length >= wanted and self.length - wanted < 2 * self.STEP:
            return
        for group in (self.keys, self.values):
            for i, old in enumerate(group):
                new = old.new_zeros((*old.shape[:2], wanted, old.shape[3]))
                kept = min(wanted, old.shape[2])
                new[:, :, :kept] = old[:, :, :kept]
                group[i] = new

    def keep(self, slots: Tensor) -> None:
        """Keep the given slots (int64 [kept]) alone, in that order."""
        self.keys = [key[slots] for key in self.keys]
        self.values = [value[slots] for value in self.values]


@dataclass(frozen=True)
class TargetOutput:
    """The result of one forward for ``n`` new rows of each of ``batch`` sequences.

    Attributes:
        final: [batch, n, d], after the final norm: ``lm_head`` of it gives the logits.
        taps: one [batch, n, d] for each tapped layer: the layer's output.
    """

    final: Tensor
    taps: list[Tensor]


class PlainTarget:
    """The weights of a model of the llama family, and its forward. Inference only.

    Attributes:
        config: the folder's ``config.json``.
        embedding: [vocab, d].
        head: [vocab, d] (the embedding itself where they are tied).
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: Hugging Face names; their dtype is the dtype of everything. It is emptied
                on the way, so that memory holds a large target once.

        Raises:
            DrafterError: another family, or a part of it that is not known here.
        """
        check_family(config)
        self.config = config
        self.hidden_size = int(config["hidden_size"])
        self.num_layers = int(config["num_hidden_layers"])
        self.num_heads = int(config["num_attention_heads"])
        self.num_kv_heads = int(config.get("num_key_value_heads") or self.num_heads)
        self.head_dim = int(config.get("head_dim") or self.hidden_size // self.num_heads)
        self.eps = float(config["rms_norm_eps"])
        self.rope_theta, scaling = rotary_of(config)
        self.max_positions = int(config["max_position_embeddings"])
        self.embedding = weights["model.embed_tokens.weight"]
        tied = config.get("tie_word_embeddings") or "lm_head.weight" not in weights
        self.head = self.embedding if tied else weights["lm_head.weight"]
        self.norm = weights["model.norm.weight"]
        self.layers = [take_layer(weights, i) for i in range(self.num_layers)]
        self._tables = rotary_tables(
            self.head_dim, self.rope_theta, self.max_positions, self.device, scaling
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PlainTarget:
        """Read a Hugging Face folder with safetensors.

        Raises:
            DrafterError: no config or no weights there.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        files = target_files(folder)
        if not files or not (folder / "config.json").is_file():
            raise DrafterError(f"{folder}: expected config.json and *.safetensors of the target")
        config = read_target_config(folder)
        config["eos_token_id"] = end_tokens(folder)
        weights: dict[str, Tensor] = {}
        for file in files:
            weights |= {name: value.to(device, dtype) for name, value in load_file(file).items()}
        return cls(config, weights)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        eos = self.config.get("eos_token_id")
        return frozenset([eos] if isinstance(eos, int) else eos or [])

    def new_cache(self, slots: int, length: int = TargetCache.STEP) -> TargetCache:
        """A zeroed cache for ``slots`` sequences; it grows past ``length`` rows as needed."""
        shape = (slots, self.num_kv_heads, length, self.head_dim)
        new = [
            torch.zeros(shape, dtype=self.dtype, device=self.device)
            for _ in range(2 * self.num_layers)
        ]
        return TargetCache(new[: self.num_layers], new[self.num_layers :])

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,
        starts: Tensor,
        cache: TargetCache | None,
        *,
        slots: Tensor | None = None,
        tap_layers: Sequence[int] = (),
    ) -> TargetOutput:
        """Run ``n`` new rows of each sequence and append their keys and values to the cache.

        Args:
            ids: int64 [batch, n]; rows past a sequence's end may hold anything (they are written
                to the cache after its end, where the next call overwrites them).
            starts: int64 [batch], the position of each sequence's first new row. All zero makes
                it a prefill, which reads nothing from the cache.
            cache: None = a prefill that nothing follows; ``starts`` are zero.
            slots: int64 [batch], the sequences' cache slots; None = all slots in order.
            tap_layers: ids of the layers (from 0) whose outputs are returned.
        """
        n = ids.shape[1]
        positions = starts[:, None] + torch.arange(n, device=self.device)
        cos, sin = (table[positions] for table in self._tables)
        mask = None
        if cache is not None:
            fresh = not bool(starts.any())
            needed = int(positions.max()) + 1
            # Rows of some slots say nothing of how much the others hold.
            cache.resize(needed if slots is None else max(needed, cache.length))
            if not fresh:
                mask = torch.arange(cache.length, device=self.device) <= positions[..., None]
        taps: dict[int, Tensor] = {}
        x = F.embedding(ids, self.embedding)
        for i, layer in enumerate(self.layers):
            mixed = self._attention(i, layer, x, cos, sin, positions, cache, slots, mask)
            x = x + _project(layer, "o", mixed)
            gate, up = _project(layer, "gate_up", rms_norm(x, layer["post"], self.eps)).chunk(2, -1)
            x = x + _project(layer, "down", F.silu(gate) * up)
            if i in tap_layers:
                taps[i] = x
        return TargetOutput(rms_norm(x, self.norm, self.eps), [taps[i] for i in tap_layers])

    def logits(self, final: Tensor) -> Tensor:
        """[..., d] after the final norm -> [..., vocab]."""
        return F.linear(final, self.head)

    def _attention(
        self,
        index: int,
        layer: dict[str, Tensor],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        cache: TargetCache | None,
        slots: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        batch, n, _ = x.shape
        heads = _project(layer, "qkv", rms_norm(x, layer["in"], self.eps))
        heads = heads.view(batch, n, -1, self.head_dim)
        query, key, value = torch.split(
            heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2
        )
        if "q_norm" in layer:
            query = rms_norm(query, layer["q_norm"], self.eps)
            key = rms_norm(key, layer["k_norm"], self.eps)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        if cache is not None:
            rows = torch.arange(batch, device=self.device) if slots is None else slots
            # Mixed integer and slice indices: the written block is [batch, n, kv_heads, head_dim].
            cache.keys[index][rows[:, None], :, positions] = key
            cache.values[index][rows[:, None], :, positions] = value
        if cache is None or mask is None:
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                is_causal=True,
                enable_gqa=True,
            )
            return mixed.transpose(1, 2).reshape(batch, n, -1)
        keys, values = cache.keys[index], cache.values[index]
        if slots is not None:
            keys, values = keys[slots], values[slots]
        return grouped_attention(query, keys, values, mask)


def _project(layer: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, layer[name], layer.get(f"{name}_bias"))
