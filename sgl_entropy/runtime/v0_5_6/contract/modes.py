"""What the entropy modes and the guard of logits rely on; ``contract`` joins the tables."""

from __future__ import annotations

from sgl_entropy.hostapi.uses import Use, calls, has

_SPEC = "sglang.srt.speculative"
_WORKER = f"{_SPEC}.eagle_worker:EAGLEWorker"
_SCHEDULE = "sglang.srt.managers.schedule_batch"
_ARGS = "sglang.srt.server_args:ServerArgs"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"
_OPENAI = "sglang.srt.entrypoints.openai"

_SWITCH: tuple[Use, ...] = (
    *calls(
        "sglang.srt.server_args:set_global_server_args_for_scheduler",
        "server_args",
        by="switching",
    ),
    *has(
        _ARGS,
        *("disaggregation_mode", "enable_dp_attention", "pp_size"),
        by="switch_args",
    ),
    *calls(
        f"{_WORKER}.forward_draft_extend",
        *("batch", "hidden_states", "next_token_ids", "seq_lens_cpu"),
        by="switching",
    ),
    *has(f"{_WORKER}.draft_model_runner", by="switching"),
    *calls(
        "sglang.srt.managers.scheduler:GenerationBatchResult",
        *("logits_output=", "next_token_ids=", "num_accepted_tokens=", "can_run_cuda_graph="),
        by="switching",
    ),
    *calls(
        f"{_SPEC}.eagle_info:EagleDraftInput",
        *("hidden_states=", "verified_id=", "capture_hidden_mode="),
        *("num_tokens_per_batch=", "num_tokens_for_logprob_per_batch="),
        by="switching",
    ),
    *has(f"{_SPEC}.eagle_info:EagleDraftInput", "accept_length_cpu", by="switching"),
    *has(
        f"{_SPEC}.eagle_info:EagleVerifyOutput",
        *("accept_length_per_req_cpu", "verified_id"),
        by="switching",
    ),
    *has(
        f"{_SCHEDULE}:ScheduleBatch",
        *("extend_input_logprob_token_ids", "extend_lens", "extend_logprob_start_lens"),
        *("extend_num_tokens", "forward_mode", "input_ids", "is_extend_in_batch"),
        *("multimodal_inputs", "orig_seq_lens", "out_cache_loc", "prefix_lens"),
        *("req_pool_indices", "req_to_token_pool", "return_hidden_states", "return_logprob"),
        *("seq_lens", "seq_lens_cpu", "seq_lens_sum", "spec_info"),
        by="switching",
    ),
    *calls(f"{_SCHEDULE}:ScheduleBatch.get_model_worker_batch", by="switching"),
    *calls(f"{_SCHEDULE}:Req.finished", by="switching, counters"),
    *has(f"{_FORWARD}:CaptureHiddenMode", by="switching"),
    *has(f"{_FORWARD}:CaptureHiddenMode", "LAST", by="switching"),
    *has(f"{_FORWARD}:ForwardMode", by="switching"),
    *has(f"{_FORWARD}:ForwardMode", "EXTEND", by="switching"),
    *calls(f"{_FORWARD}:ForwardMode.is_extend", by="switching"),
    *calls(f"{_FORWARD}:ForwardBatch.init_new", *("batch", "model_runner"), by="switching"),
    *calls(
        "sglang.srt.model_executor.model_runner:ModelRunner.forward",
        *("forward_batch", "skip_attn_backend_init="),
        by="switching, draft_stop, cpu.draft_rows",
    ),
)

MODES: tuple[Use, ...] = (
    *has(_ARGS, "revision", by="modes"),
    *calls(f"{_ARGS}.add_cli_args", "parser", by="the patch that adds the modes' flags"),
    *calls(f"{_ARGS}.from_cli_args", "args", by="the patch that adds the modes' flags"),
    *has(
        _WORKER,
        "hot_token_id",
        "target_worker",
        by="draft_stats",
    ),
    *calls(f"{_WORKER}.capture_for_decode", "logits_output", "draft_input", by="draft_stats"),
    *calls(f"{_WORKER}.forward_target_extend", "batch", by="nonfinite"),
    *calls(
        f"{_SPEC}.eagle_info:EagleDraftInput.filter_batch",
        *("new_indices", "has_been_filtered"),
        by="draft_stats",
    ),
    *calls(f"{_SPEC}.eagle_info:EagleDraftInput.merge_batch", "spec_info", by="draft_stats"),
    *calls(
        f"{_SPEC}.eagle_draft_cuda_graph_runner:EAGLEDraftCudaGraphRunner.replay",
        "forward_batch",
        by="draft_stats",
    ),
    *calls(
        f"{_SPEC}.eagle_draft_cuda_graph_runner:EAGLEDraftCudaGraphRunner.capture_one_batch_size",
        *("num_seqs", "forward"),
        by="draft_stats",
    ),
    *has(f"{_SCHEDULE}:Req", "to_finish", by="nonfinite"),
    *calls(
        "sglang.srt.mem_cache.common:release_kv_cache",
        *("req", "tree_cache", "is_insert"),
        by="nonfinite",
    ),
    *calls(f"{_SCHEDULE}:FINISH_ABORT", "message", "status_code", "err_type", by="nonfinite"),
    *has("sglang.srt.sampling.sampling_params:SamplingParams", "custom_params", by="easd"),
    *has(
        f"{_SPEC}.eagle_info:EagleVerifyInput",
        "spec_steps",
        by="easd",
    ),
    *calls(
        "sglang.srt.layers.sampler:Sampler._preprocess_logits",
        *("logits", "sampling_info"),
        by="nonfinite",
    ),
    *_SWITCH,
    *has(f"{_OPENAI}.protocol:UsageInfo", by="usage"),
    *has(f"{_OPENAI}.serving_chat:OpenAIServingChat", by="usage"),
    *has(f"{_OPENAI}.serving_completions:OpenAIServingCompletion", by="usage"),
)
