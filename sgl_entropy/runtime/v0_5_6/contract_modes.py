"""What the entropy modes and the guard of logits rely on; ``contract`` joins the tables."""

from __future__ import annotations

from sgl_entropy.hostapi.uses import Use, calls, has

_SPEC = "sglang.srt.speculative"
_WORKER = f"{_SPEC}.eagle_worker:EAGLEWorker"
_SCHEDULE = "sglang.srt.managers.schedule_batch"
_ARGS = "sglang.srt.server_args:ServerArgs"
_OPENAI = "sglang.srt.entrypoints.openai"

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
    *has(f"{_OPENAI}.protocol:UsageInfo", by="usage"),
    *has(f"{_OPENAI}.serving_chat:OpenAIServingChat", by="usage"),
    *has(f"{_OPENAI}.serving_completions:OpenAIServingCompletion", by="usage"),
)
