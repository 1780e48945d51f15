"""The EDSD drafter as an SGLang model (SPEC: EDSD section 3, the authors' published layout).

The plain reference is ``sgl_entropy.drafter.model``; tests compare the two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.distributed import get_pp_group
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.models.llama import LlamaDecoderLayer
from torch import nn

from sgl_entropy.drafter.config import DrafterConfig, DrafterError
from sgl_entropy.runtime.v0_5_6.cpu import gemm
from sgl_entropy.runtime.v0_5_6.drafters import served_edsd

# checkpoint name -> (parameter it is a part of, which part)
_STACKED = {
    "midlayer.self_attn.q_proj.weight": ("midlayer.self_attn.qkv_proj.weight", "q"),
    "midlayer.self_attn.k_proj.weight": ("midlayer.self_attn.qkv_proj.weight", "k"),
    "midlayer.self_attn.v_proj.weight": ("midlayer.self_attn.qkv_proj.weight", "v"),
    "midlayer.mlp.gate_proj.weight": ("midlayer.mlp.gate_up_proj.weight", 0),
    "midlayer.mlp.up_proj.weight": ("midlayer.mlp.gate_up_proj.weight", 1),
}


class EdFuse(nn.Module):
    """z = down(SiLU(gate(f)) * up(e)) (EDSD, section 3.2): [t, d], [t, d] -> [t, d]."""

    def __init__(self, hidden_size: int, fuse_size: int) -> None:
        super().__init__()
        self.gate_proj = ColumnParallelLinear(hidden_size, fuse_size, bias=False)
        self.up_proj = ColumnParallelLinear(hidden_size, fuse_size, bias=False)
        self.down_proj = RowParallelLinear(fuse_size, hidden_size, bias=False)

    def forward(self, features: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        gate, _ = self.gate_proj(features)
        up, _ = self.up_proj(embeds)
        out, _ = self.down_proj(nn.functional.silu(gate).mul_(up))
        return out


class EdsdDecoderLayer(LlamaDecoderLayer):
    """One Llama layer whose input is the fused z: its norm is ``hidden_norm``, its residual z.

    With ``fuse_tokens`` attention sees the token beside the normed z.
    """

    def __init__(self, config: Any, sizes: DrafterConfig) -> None:
        super().__init__(config, 0)
        self.fuse_tokens = sizes.fuse_tokens
        if self.fuse_tokens:
            self.self_attn.qkv_proj = QKVParallelLinear(
                sizes.attention_width,
                sizes.head_dim,
                sizes.num_attention_heads,
                sizes.num_key_value_heads,
                bias=False,
            )
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        del self.input_layernorm

    def forward(
        self,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        fused: torch.Tensor,
        forward_batch: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = self.hidden_norm(fused)
        if self.fuse_tokens:
            mixed = torch.cat([tokens, mixed], -1)
        attended = self.self_attn(
            positions=positions, hidden_states=mixed, forward_batch=forward_batch
        )
        normed, residual = self.post_attention_layernorm(attended, fused)
        return self.mlp(normed), residual


class EdsdDraftModel(nn.Module):
    """EDSD drafter: logits over the draft vocabulary, the un-normed output as next feature."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        if quant_config is not None:
            raise DrafterError("EDSD drafters are served unquantized: drop the quantization flag")
        self.config = config
        self.quant_config = None
        self.pp_group = get_pp_group()
        served = served_edsd()
        if served is None:
            raise DrafterError(
                "an EDSD drafter is served with --speculative-algorithm EDSD, not as a target"
            )
        self.drafter_config = sizes = served
        d = sizes.hidden_size
        config.head_dim = sizes.head_dim
        # The target replaces this at once; its own copy is never read.
        self.embed_tokens = VocabParallelEmbedding(sizes.vocab_size, sizes.target_hidden_size)
        self.fc = nn.Linear(sizes.tap_width, d, bias=False)
        assert sizes.fuse_size is not None
        self.edfuse = EdFuse(d, sizes.fuse_size)
        if sizes.fuse_norm:
            self.embnorm = RMSNorm(d, eps=sizes.rms_norm_eps)
        self.midlayer = EdsdDecoderLayer(config, sizes)
        self.norm = RMSNorm(d, eps=sizes.rms_norm_eps)
        self.lm_head = ParallelLMHead(sizes.draft_vocab_size, d)
        logits_config = copy.deepcopy(config)
        logits_config.vocab_size = sizes.draft_vocab_size
        self.logits_processor = LogitsProcessor(logits_config)
        self.capture_aux_hidden_states = True
        self.load_lm_head_from_target = False
        self.hot_token_id: torch.Tensor | None = None

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        input_embeds: torch.Tensor | None = None,
    ) -> LogitsProcessorOutput:
        sizes = self.drafter_config
        features = forward_batch.spec_info.hidden_states
        if features.shape[-1] == sizes.tap_width:
            features = gemm.linear(self.fc, features)
        if features.shape[0] == 0:
            hidden, outputs = features, features
        else:
            embeds = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
            tokens = self.embnorm(embeds) if sizes.fuse_norm else embeds
            fused = self.edfuse(features, tokens)
            if sizes.fuse_residual:
                fused = fused + features
            mlp_out, residual = self.midlayer(positions, tokens, fused, forward_batch)
            hidden, outputs = self.norm(mlp_out, residual)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch, [outputs])

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the published layout; every tensor is accounted for.

        Raises:
            DrafterError: missing, unexpected or wrongly shaped tensors, all listed.
        """
        shapes = self.drafter_config.tensor_shapes()
        parameters = dict(self.named_parameters())
        wrong: list[str] = []
        seen: set[str] = set()
        for name, tensor in weights:
            if name in ("embed_tokens.weight", "model.embed_tokens.weight"):
                continue  # the target's own is used
            expected = shapes.get(name)
            if expected is None:
                wrong.append(f"unexpected tensor {name} {tuple(tensor.shape)}")
                continue
            if tuple(tensor.shape) != expected:
                wrong.append(f"{name}: expected {expected}, found {tuple(tensor.shape)}")
                continue
            seen.add(name)
            if name == "d2t":
                self.hot_token_id = tensor + torch.arange(tensor.shape[0])
            elif name in _STACKED:
                whole, part = _STACKED[name]
                load_part: Any = getattr(parameters[whole], "weight_loader")  # noqa: B009
                load_part(parameters[whole], tensor, part)
            elif name != "t2d":
                parameter = parameters[name]
                loader = getattr(parameter, "weight_loader", default_weight_loader)
                loader(parameter, tensor)
        wrong += [f"missing tensor {name}" for name in shapes if name not in seen | {"t2d"}]
        if wrong:
            raise DrafterError("the EDSD checkpoint does not fit:\n" + "\n".join(wrong))

    def set_embed(self, embed: torch.Tensor) -> None:
        """Share the target's embedding table."""
        del self.embed_tokens.weight
        self.embed_tokens.weight = embed

    def get_embed(self) -> torch.Tensor:
        return self.embed_tokens.weight

    def get_hot_token_id(self) -> torch.Tensor | None:
        return self.hot_token_id


def register(registry: Any) -> None:
    """Make EDSD's architecture names known to SGLang's model registry (called by the patch)."""
    from sgl_entropy.drafter.config import EDSD_ARCHITECTURES

    for architecture in EDSD_ARCHITECTURES:
        registry.models.setdefault(architecture, EdsdDraftModel)
