"""What the CPU engine relies on; ``contract`` joins the tables."""

from __future__ import annotations

from sgl_entropy.hostapi.uses import Use, calls, has, replaces

_LAYERS = "sglang.srt.layers"
_SPEC = "sglang.srt.speculative"
_NATIVE = f"{_LAYERS}.attention.torch_native_backend:TorchNativeAttnBackend"
_BATCH = "sglang.srt.model_executor.forward_batch_info"
_POOLS = "sglang.srt.mem_cache.memory_pool"
_SAMPLING = "sglang.srt.sampling"

CPU_ENGINE: tuple[Use, ...] = (
    *calls(_NATIVE, "model_runner", by="cpu.attention"),
    *replaces(f"{_NATIVE}.init_forward_metadata", "forward_batch", by="cpu.attention"),
    *replaces(
        f"{_NATIVE}.forward_extend",
        *("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        by="cpu.attention",
    ),
    *replaces(
        f"{_NATIVE}.forward_decode",
        *("q", "k", "v", "layer", "forward_batch", "save_kv_cache"),
        by="cpu.attention",
    ),
    *calls(
        f"{_LAYERS}.attention.attention_registry:create_torch_native_backend",
        "runner",
        by="the patch that serves the CPU engine's attention",
    ),
    *has(f"{_LAYERS}.radix_attention:AttentionType", by="cpu.attention"),
    *has(f"{_LAYERS}.radix_attention:AttentionType", "ENCODER_ONLY", by="cpu.attention"),
    *has(f"{_LAYERS}.radix_attention:RadixAttention", by="cpu.attention"),
    *has(
        f"{_LAYERS}.radix_attention:RadixAttention",
        "attn_type",
        "is_cross_attention",
        "layer_id",
        "qk_head_dim",
        "scaling",
        "tp_q_head_num",
        "v_head_dim",
        by="cpu.attention",
    ),
    *has("sglang.srt.model_executor.model_runner:ModelRunner", by="cpu.attention"),
    *has(f"{_BATCH}:ForwardBatch", by="cpu.attention"),
    *has(
        f"{_BATCH}:ForwardBatch",
        "extend_seq_lens_cpu",
        "forward_mode",
        "input_ids",
        "out_cache_loc",
        "positions",
        "req_pool_indices",
        "req_to_token_pool",
        "seq_lens",
        "spec_info",
        "token_to_kv_pool",
        by="cpu.attention, cpu.pruning, models",
    ),
    *calls(f"{_BATCH}:ForwardMode.is_idle", by="cpu.attention"),
    *calls(f"{_BATCH}:ForwardMode.is_decode", by="cpu.attention"),
    *calls(f"{_BATCH}:ForwardMode.is_target_verify", by="cpu.attention"),
    *calls(f"{_BATCH}:ForwardMode.is_draft_extend", by="cpu.attention"),
    *has(f"{_POOLS}:ReqToTokenPool", "req_to_token", by="cpu.attention"),
    *calls(
        f"{_POOLS}:MHATokenToKVPool.set_kv_buffer",
        *("layer", "loc", "cache_k", "cache_v"),
        by="cpu.attention",
    ),
    *calls(f"{_POOLS}:MHATokenToKVPool.get_key_buffer", "layer_id", by="cpu.attention"),
    *calls(f"{_POOLS}:MHATokenToKVPool.get_value_buffer", "layer_id", by="cpu.attention"),
    *calls(
        f"{_LAYERS}.quantization.unquant:UnquantizedLinearMethod.apply",
        *("layer", "x", "bias"),
        by="the patch that packs weights",
    ),
    *calls(f"{_LAYERS}.sampler:sampling_from_probs_torch", "probs", by="sampling"),
    *calls(
        f"{_LAYERS}.sampler:top_k_top_p_min_p_sampling_from_probs_torch",
        *("probs", "top_ks", "top_ps", "min_ps"),
        *("need_min_p_sampling", "sampling_seed", "positions"),
        by="sampling",
    ),
    *has(f"{_SAMPLING}.sampling_batch_info:SamplingBatchInfo", by="sampling"),
    *has(
        f"{_SAMPLING}.sampling_batch_info:SamplingBatchInfo",
        "is_all_greedy",
        "logit_bias",
        "min_ps",
        "need_min_p_sampling",
        "need_top_k_sampling",
        "need_top_p_sampling",
        "penalizer_orchestrator",
        "temperatures",
        "top_ks",
        "top_ps",
        by="sampling, penalties",
    ),
    *replaces(
        f"{_SPEC}.spec_utils:create_extend_after_decode_spec_info",
        *("verified_id", "seq_lens", "accept_lens", "positions", "new_verified_id", "..."),
        by="cpu.spec_ops",
    ),
    *replaces(
        f"{_SPEC}.spec_utils:assign_req_to_token_pool",
        *("req_pool_indices", "req_to_token", "start_offset", "end_offset"),
        *("out_cache_loc", "..."),
        by="cpu.spec_ops",
    ),
    *replaces(
        f"{_SPEC}.spec_utils:assign_draft_cache_locs",
        *("req_pool_indices", "req_to_token", "seq_lens", "extend_lens"),
        *("num_new_pages_per_topk", "out_cache_loc", "source_cache_loc", "target_cache_loc"),
        *("last_page_lens_cumsum", "duplicate_cache_len", "pool_len", "topk"),
        *("speculative_num_steps", "page_size", "..."),
        by="cpu.spec_ops",
    ),
    *calls(
        f"{_SPEC}.eagle_utils:organize_draft_results",
        *("score_list", "token_list", "parents_list", "num_draft_token"),
        by="the patch that prunes drafts on the CPU engine",
    ),
    *calls(
        "sglang.srt.model_executor.model_runner:ModelRunner.forward_extend",
        "forward_batch",
        by="the patch that prunes drafts on the CPU engine",
    ),
    *calls(
        f"{_SPEC}.eagle_utils:build_tree_kernel_efficient",
        *("verified_id", "parent_list", "top_scores_index", "draft_tokens", "seq_lens"),
        *("seq_lens_sum", "topk", "spec_steps", "num_verify_tokens"),
        by="the patch that builds trees on the CPU engine",
    ),
    *calls(
        f"{_SPEC}.eagle_utils:verify_tree_greedy_func",
        *("predicts", "accept_index", "accept_token_num", "candidates", "retrive_index"),
        *("retrive_next_token", "retrive_next_sibling", "target_predict"),
        by="the patch that verifies on the CPU engine",
    ),
)
