"""Attention backends of the CPU engine, in place of ``torch_native``.

Upstream's backend loops over sequences in every layer, recomputes a full-length query for an
extend, and knows neither verification nor draft steps. These run ``serving.attention_plans``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType

from sgl_entropy.runtime.v0_5_6.cpu.pruning import live_nodes
from sgl_entropy.serving.attention_plans import (
    AttentionGroup,
    attend,
    draft_step_plans,
    make_plan,
    tree_block,
)

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class CpuAttnBackend(TorchNativeAttnBackend):
    """The CPU engine's attention backend (``--attention-backend torch_native``)."""

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__(model_runner)
        self.plan: list[AttentionGroup] | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self.plan = None
            return
        seq_lens = forward_batch.seq_lens.tolist()
        tree_mask = None
        spec_info = forward_batch.spec_info
        if mode.is_decode():
            kv_lens, new_lens = seq_lens, [1] * len(seq_lens)
        elif mode.is_target_verify():
            n = spec_info.draft_token_num
            live = live_nodes(spec_info)
            new_lens = live.sum(1).tolist()
            if spec_info.topk > 1:
                kv_lens = [s + n for s in seq_lens]
                blocks = tree_block(spec_info.custom_mask, seq_lens, n)
                tree_mask = [block[rows] for block, rows in zip(blocks, live, strict=True)]
            else:
                # The live nodes of a chain are its first ones.
                kv_lens = [s + m for s, m in zip(seq_lens, new_lens, strict=True)]
        elif mode.is_draft_extend():
            kv_lens, new_lens = seq_lens, spec_info.accept_length.tolist()
        else:
            kv_lens, new_lens = seq_lens, list(forward_batch.extend_seq_lens_cpu)
        self.plan = make_plan(
            forward_batch.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            kv_lens,
            new_lens,
            tree_mask,
        )

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        pool = forward_batch.token_to_kv_pool
        if save_kv_cache:
            pool.set_kv_buffer(layer, forward_batch.out_cache_loc, k, v)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = q.new_empty(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        assert self.plan is not None, "init_forward_metadata was not called"
        attend(
            q,
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            self.plan,
            layer.scaling,
            out,
        )
        return out.view(q.shape[0], -1)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        if layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        if layer.is_cross_attention:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache)


class CpuDraftStep(CpuAttnBackend):
    """Attention of one draft step; its plan is set by :class:`CpuMultiStepDraftBackend`."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        raise RuntimeError("draft steps are planned together by CpuMultiStepDraftBackend")


class CpuMultiStepDraftBackend:
    """Plans all decode steps of a draft at once; one attention backend a step.

    SGLang lays the slots of branch k of a request after its sequence: ``seq_len + k * steps``
    onwards in ``req_to_token``. The row of that branch sees the sequence and its own branch.
    """

    def __init__(self, model_runner: ModelRunner, topk: int, speculative_num_steps: int) -> None:
        self.topk = topk
        self.steps = speculative_num_steps
        self.attn_backends = [CpuDraftStep(model_runner) for _ in range(speculative_num_steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        plans = draft_step_plans(
            forward_batch.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens.tolist(),
            self.topk,
            self.steps,
        )
        for backend, plan in zip(self.attn_backends, plans, strict=True):
            backend.plan = plan
