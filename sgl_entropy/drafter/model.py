"""Both drafters in plain torch: the reference that everything faster is compared with.

EDSD (EDSD paper, section 3, and the authors' published checkpoints): f and the token embedding
meet in a gated product, EDFuse, before one decoder layer. (Options: f added to the product and
the token beside it in attention, both ours; no norm on the embedding, an ablation of the paper.)
EAGLE-3: their norms are concatenated and f is the residual. In both, the first draft step sees
``fc`` of the target's tapped hidden states and every later step the drafter's own output before
the final norm. State-dict keys are exactly those of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgl_entropy.checkpoint.tensors import read_header
from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.target.plain import grouped_attention
from sgl_entropy.target.rotary import apply_rotary, rotary_tables


class Norm(nn.Module):
    """RMSNorm with float32 statistics; the result has the weight's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(self.weight.dtype)


class GatedMLP(nn.Module):
    """gate, up and down projections without biases."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, gate_input: Tensor, up_input: Tensor) -> Tensor:
        """``down(SiLU(gate(gate_input)) * up(up_input))``; an MLP gets the same input twice."""
        product = F.silu(self.gate_proj(gate_input)) * self.up_proj(up_input)
        out: Tensor = self.down_proj(product)
        return out


class Attention(nn.Module):
    """The four projections; attending is left to the caller, who knows the cache."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        width = config.attention_width
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)


class DecoderLayer(nn.Module):
    """The one layer's modules, named as the published checkpoints name them."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.hidden_norm = Norm(d, eps)
        if config.algorithm == "EAGLE3":
            self.input_layernorm = Norm(d, eps)
        self.post_attention_layernorm = Norm(d, eps)
        self.mlp = GatedMLP(d, config.intermediate_size)


@dataclass
class DraftCache:
    """Rotated keys and values of the rows seen so far, each [batch, kv_heads, rows, head_dim]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(key.shape[2] for key in self.keys)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows [batch, n, kv_heads, head_dim] and return everything."""
        self.keys = [torch.cat([*self.keys, key.transpose(1, 2)], dim=2)]
        self.values = [torch.cat([*self.values, value.transpose(1, 2)], dim=2)]
        return self.keys[0], self.values[0]

    def copy(self) -> DraftCache:
        """A cache that grows on its own: drafted rows never stay in the verified one."""
        return DraftCache(list(self.keys), list(self.values))


class Drafter(nn.Module):
    """An EDSD or EAGLE-3 drafter. The token embedding stays the target's and is passed in.

    Attributes:
        config: its sizes.
        t2d: bool [vocab], which target tokens are in the draft vocabulary.
        d2t: int64 [draft vocab], draft id + d2t = target id.
    """

    t2d: Tensor
    d2t: Tensor

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.fc = nn.Linear(config.tap_width, d, bias=False)
        if config.algorithm == "EDSD":
            if config.fuse_size is None:
                raise DrafterError("the EDFuse size is not known: read it from the weights")
            self.edfuse = GatedMLP(d, config.fuse_size)
            if config.fuse_norm:
                self.embnorm = Norm(d, config.rms_norm_eps)
        self.midlayer = DecoderLayer(config)
        self.norm = Norm(d, config.rms_norm_eps)
        self.lm_head = nn.Linear(d, config.draft_vocab_size, bias=False)
        self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self._tables = rotary_tables(
            config.head_dim, config.rope_theta, config.max_position_embeddings
        )

    def fuse_taps(self, taps: Tensor) -> Tensor:
        """f_0 from the tapped hidden states side by side: [..., taps * d_target] -> [..., d]."""
        out: Tensor = self.fc(taps)
        return out

    def normed(self, embeds: Tensor) -> Tensor:
        """EDSD: what EDFuse takes of the token embeddings [..., d]."""
        out: Tensor = self.embnorm(embeds) if self.config.fuse_norm else embeds
        return out

    def mix(self, embeds: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Before attention: (residual [..., d], input of q, k, v [..., d or 2d])."""
        layer = self.midlayer
        if self.config.algorithm == "EDSD":
            token = self.normed(embeds)
            fused = self.edfuse(features, token)
            if self.config.fuse_residual:
                fused = fused + features
            mixed = layer.hidden_norm(fused)
            return fused, torch.cat([token, mixed], -1) if self.config.fuse_tokens else mixed
        both = [layer.input_layernorm(embeds), layer.hidden_norm(features)]
        return features, torch.cat(both, dim=-1)

    def queries(self, mixed: Tensor, positions: Tensor) -> Tensor:
        """Rotated queries [..., heads, head_dim] of rows at ``positions`` [...]."""
        attention = self.midlayer.self_attn
        query = attention.q_proj(mixed).unflatten(-1, (-1, self.config.head_dim))
        cos, sin = self._rotary(positions)
        return apply_rotary(query, cos, sin)

    def keys_values(self, mixed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values, each [..., kv_heads, head_dim]."""
        attention = self.midlayer.self_attn
        shape = (-1, self.config.head_dim)
        cos, sin = self._rotary(positions)
        key = apply_rotary(attention.k_proj(mixed).unflatten(-1, shape), cos, sin)
        return key, attention.v_proj(mixed).unflatten(-1, shape)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """From attention's heads to the layer's output before the final norm, [..., d]."""
        layer = self.midlayer
        y = residual + layer.self_attn.o_proj(attended)
        normed = layer.post_attention_layernorm(y)
        out: Tensor = y + layer.mlp(normed, normed)
        return out

    def forward(
        self,
        embeds: Tensor,
        features: Tensor,
        positions: Tensor,
        cache: DraftCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Run ``n`` rows of each sequence after the rows of ``cache``, which grows by them.

        Args:
            embeds: [batch, n, d], the target's embeddings of the rows' tokens: row t of a
                sequence holds token t + 1, beside the feature of token t.
            features: [batch, n, d], ``fuse_taps`` of the target's states or earlier outputs.
            positions: int64 [batch, n].
            lengths: int64 [batch], how many cached rows of each sequence are real (right
                padding); None = all.

        Returns:
            [batch, n, d], un-normed: the logits come from ``logits``, and the next draft step
            takes it as its feature.
        """
        cache = DraftCache() if cache is None else cache
        before, n = cache.rows, embeds.shape[1]
        residual, mixed = self.mix(embeds, features)
        query = self.queries(mixed, positions)
        keys, values = cache.append(*self.keys_values(mixed, positions))
        column = torch.arange(before + n)
        mask = column <= (before + torch.arange(n))[:, None]
        mask = mask.expand(embeds.shape[0], n, before + n)
        if lengths is not None:
            padded = (column >= lengths[:, None]) & (column < before)
            mask = mask & ~padded[:, None]
        return self.finish(residual, grouped_attention(query, keys, values, mask))

    def logits(self, out: Tensor) -> Tensor:
        """Un-normed output [..., d] -> logits over the draft vocabulary [..., draft_vocab]."""
        logits: Tensor = self.lm_head(self.norm(out))
        return logits

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Draft vocabulary ids -> the target's ids."""
        return draft_ids + self.d2t[draft_ids]

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self._tables[0].device != positions.device:
            # Not buffers: `.to(dtype)` would round them.
            cos, sin = self._tables
            self._tables = cos.to(positions.device), sin.to(positions.device)
        cos, sin = self._tables
        return cos[positions], sin[positions]


def build_drafter(config: DrafterConfig) -> Drafter:
    """A drafter with random weights and an empty vocabulary map.

    Raises:
        DrafterError: an EDSD config whose ``fuse_size`` is not known.
    """
    return Drafter(config)


def load_drafter(folder: str | Path, dtype: torch.dtype = torch.float32) -> Drafter:
    """Read a published checkpoint folder.

    Raises:
        DrafterError: files, tensors or shapes that are missing, or tensors that nothing reads.
    """
    from dataclasses import replace

    from safetensors.torch import load_file

    folder = Path(folder)
    config = DrafterConfig.from_folder(folder)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DrafterError(f"{path}: not found; a drafter folder holds its weights there")
    read_header(path)  # says what is wrong with a damaged file
    tensors = load_file(path)
    gate = tensors.get("edfuse.gate_proj.weight")
    if config.algorithm == "EDSD" and gate is not None:
        config = replace(config, fuse_size=gate.shape[0])
    shapes = config.tensor_shapes()
    wrong = [f"missing tensor {name}" for name in shapes if name not in tensors]
    wrong += [f"unknown tensor {name}" for name in tensors if name not in shapes]
    wrong += [
        f"{name}: shape {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise DrafterError("\n".join(f"{path}: {line}" for line in wrong))
    drafter = build_drafter(config)
    drafter.load_state_dict(tensors)
    return drafter.to(dtype).eval()


@torch.no_grad()
def draft_chain(
    drafter: Drafter,
    embedding: Tensor,
    cache: DraftCache,
    token: Tensor,
    feature: Tensor,
    position: int,
    depth: int,
) -> Tensor:
    """Greedy chain of ``depth`` draft tokens, one step a row, for one sequence.

    Args:
        embedding: the target's token embedding [vocab, d].
        cache: rows of the verified tokens; left as it was.
        token: int64 [], the last verified token.
        feature: [d], ``fuse_taps`` of the target's states at the token before it.
        position: that row's position.

    Returns:
        int64 [depth], target ids.
    """
    cache = cache.copy()
    drafted = []
    for step in range(depth):
        at = torch.tensor([[position + step]])
        out = drafter(embedding[token].view(1, 1, -1), feature.view(1, 1, -1), at, cache)
        token = drafter.target_ids(drafter.logits(out)[0, 0].argmax())
        feature = out[0, 0]
        drafted.append(token)
    return torch.stack(drafted)
