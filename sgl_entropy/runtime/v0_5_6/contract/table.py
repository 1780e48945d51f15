"""Everything of SGLang v0.5.6.post2 that this room and the patches rely on, in one table.

``check_contract`` compares it with an SGLang folder by reading its sources: nothing of SGLang is
imported, here or there, so ``sgl-entropy doctor`` can ask on any machine. Add a row with every
new import from SGLang; a test compares the table with the imports of this folder.
"""

from __future__ import annotations

from pathlib import Path

from sgl_entropy.hostapi.uses import Mismatch, Use, calls, check_uses, has, replaces
from sgl_entropy.runtime.v0_5_6.contract.cpu import CPU_ENGINE
from sgl_entropy.runtime.v0_5_6.contract.modes import MODES

SGLANG = "0.5.6.post2"

# Packages that this release was released or, on the CPU engine, tested with; the first is pinned
# by SGLang itself.
TESTED_PACKAGES = {
    "torch": ("2.9.1", "2.13.0"),
    "transformers": ("4.57.1",),
    "triton": ("3.5.1",),
    "xgrammar": ("0.1.27",),
}
TESTED_KERNELS = "0.3.19"

_LAYERS = "sglang.srt.layers"
_SPEC = "sglang.srt.speculative"
_MODELS = "sglang.srt.models"
_WORKER = f"{_SPEC}.eagle_worker:EAGLEWorker"
_SCHEDULE = "sglang.srt.managers.schedule_batch"
_SAMPLING = "sglang.srt.sampling"
_ARGS = "sglang.srt.server_args"

_FLAGS: tuple[Use, ...] = (
    *calls(f"{_ARGS}:get_global_server_args", by="drafters, ours, taps"),
    *calls(f"{_ARGS}:ServerArgs.get_hf_config", by="flags"),
    *calls(f"{_ARGS}:ServerArgs._handle_speculative_decoding", by="the patch that calls flags"),
    *has(
        f"{_ARGS}:ServerArgs",
        "attention_backend",
        "context_length",
        "device",
        "model_path",
        "page_size",
        "speculative_accept_threshold_acc",
        "speculative_accept_threshold_single",
        "speculative_algorithm",
        "speculative_draft_model_path",
        "speculative_draft_model_revision",
        "speculative_eagle_topk",
        "speculative_num_draft_tokens",
        "speculative_num_steps",
        by="flags",
    ),
    *has(
        "sglang.srt.configs.model_config:ModelConfig",
        "hf_config",
        "is_draft_model",
        by="flags.allow_short_window",
    ),
    *calls("sglang.srt.utils:is_cpu", by="the CPU engine's patches"),
)

_ALGORITHM: tuple[Use, ...] = (
    *calls(
        f"{_SPEC}.spec_info:register_speculative_algorithm",
        "name",
        "worker_cls=",
        "flags=",
        by="worker.register",
    ),
    *calls(f"{_SPEC}.spec_info:SpeculativeAlgorithm.is_eagle3", by="the patches of feature taps"),
    *calls(
        _WORKER,
        "server_args=",
        "gpu_id=",
        "tp_rank=",
        "dp_rank=",
        "moe_ep_rank=",
        "nccl_port=",
        "target_worker=",
        by="worker.create_worker",
    ),
    *calls(f"{_WORKER}.forward_batch_generation", "batch", by="SGLang's scheduler, on our worker"),
    *calls(f"{_WORKER}.draft", "batch", by="worker"),
    *calls(f"{_WORKER}.draft_forward", "forward_batch", by="worker"),
    *calls(f"{_WORKER}.verify", "batch", "spec_info", by="worker"),
    *calls(f"{_WORKER}.forward_draft_extend_after_decode", "batch", by="taps"),
    *has(
        f"{_SPEC}.eagle_info:EagleDraftInput",
        "accept_length",
        "hidden_states",
        by="cpu.attention, models",
    ),
    *has(
        f"{_SPEC}.eagle_info:EagleVerifyInput",
        "custom_mask",
        "draft_token",
        "draft_token_num",
        "retrive_index",
        "retrive_next_sibling",
        "retrive_next_token",
        "topk",
        by="cpu.attention, cpu.pruning, counters, penalties",
    ),
    *calls(
        f"{_SPEC}.eagle_info:EagleVerifyInput.verify",
        "batch",
        "logits_output",
        "token_to_kv_pool_allocator",
        "page_size",
        by="the patch that samples on the CPU engine",
    ),
    *has(
        f"{_SPEC}.draft_utils:DraftBackendFactory",
        "_create_backend",
        "draft_model_runner",
        "speculative_num_steps",
        "topk",
        by="the patch that adds the CPU engine's draft attention",
    ),
    *calls(
        f"{_MODELS}.llama:LlamaForCausalLM.set_eagle3_layers_to_capture", "layer_ids", by="taps"
    ),
)

_DRAFT_MODEL: tuple[Use, ...] = (
    *calls("sglang.srt.distributed:get_pp_group", by="models"),
    *calls(f"{_LAYERS}.layernorm:RMSNorm", "hidden_size", "eps=", by="models"),
    *calls(f"{_LAYERS}.layernorm:RMSNorm.forward_native", "x", "residual", by="models"),
    *calls(
        f"{_LAYERS}.linear:ColumnParallelLinear", "input_size", "output_size", "bias=", by="models"
    ),
    *calls(f"{_LAYERS}.linear:ColumnParallelLinear.forward", "input_", by="models"),
    *calls(
        f"{_LAYERS}.linear:RowParallelLinear", "input_size", "output_size", "bias=", by="models"
    ),
    *calls(f"{_LAYERS}.linear:RowParallelLinear.forward", "input_", by="models"),
    *calls(
        f"{_LAYERS}.linear:QKVParallelLinear",
        *("hidden_size", "head_size", "total_num_heads", "total_num_kv_heads", "bias="),
        by="models",
    ),
    *calls(f"{_LAYERS}.logits_processor:LogitsProcessor", "config", by="models"),
    *calls(
        f"{_LAYERS}.logits_processor:LogitsProcessor.forward",
        "input_ids",
        "hidden_states",
        "lm_head",
        "logits_metadata",
        "aux_hidden_states",
        by="models",
    ),
    *has(
        f"{_LAYERS}.logits_processor:LogitsProcessorOutput",
        "next_token_logits",
        "hidden_states",
        by="models, cpu.pruning",
    ),
    *has(f"{_LAYERS}.logits_processor:LogitsProcessorOutput", by="models, cpu.pruning"),
    *calls(
        f"{_LAYERS}.vocab_parallel_embedding:ParallelLMHead",
        "num_embeddings",
        "embedding_dim",
        by="models",
    ),
    *calls(
        f"{_LAYERS}.vocab_parallel_embedding:VocabParallelEmbedding",
        "num_embeddings",
        "embedding_dim",
        by="models",
    ),
    *calls(
        "sglang.srt.model_loader.weight_utils:default_weight_loader",
        "param",
        "loaded_weight",
        by="models",
    ),
    *calls(f"{_MODELS}.llama:LlamaDecoderLayer", "config", "layer_id", by="models"),
    *has(
        f"{_MODELS}.llama:LlamaDecoderLayer",
        "input_layernorm",
        "mlp",
        "post_attention_layernorm",
        "self_attn",
        by="models.EdsdDecoderLayer",
    ),
    *calls(
        f"{_MODELS}.llama:LlamaAttention.forward",
        "positions=",
        "hidden_states=",
        "forward_batch=",
        by="models.EdsdDecoderLayer",
    ),
    *calls(f"{_MODELS}.llama:LlamaMLP.forward", "x", by="models.EdsdDecoderLayer"),
    *has(f"{_MODELS}.registry:_ModelRegistry", "models", by="models.register"),
    *has(f"{_MODELS}.registry:ModelRegistry", by="the patch that registers the drafter"),
    # What SGLang's worker calls on an EAGLE-3 drafter, it calls on ours.
    *replaces(f"{_MODELS}.llama:LlamaForCausalLM.set_embed", "embed", by="models.EdsdDraftModel"),
    *replaces(f"{_MODELS}.llama:LlamaForCausalLM.get_embed", by="models.EdsdDraftModel"),
    *replaces(
        f"{_MODELS}.llama_eagle3:LlamaForCausalLMEagle3.get_hot_token_id",
        by="models.EdsdDraftModel",
    ),
    *replaces(
        f"{_MODELS}.llama_eagle3:LlamaForCausalLMEagle3.load_weights",
        "weights",
        by="models.EdsdDraftModel",
    ),
    *has(
        f"{_MODELS}.llama_eagle3:LlamaForCausalLMEagle3",
        "capture_aux_hidden_states",
        "hot_token_id",
        "load_lm_head_from_target",
        by="models.EdsdDraftModel",
    ),
)

_REQUESTS: tuple[Use, ...] = (
    *has(f"{_SCHEDULE}:Req", by="penalties, counters"),
    *has(
        f"{_SCHEDULE}:Req",
        "finished_reason",
        "output_ids",
        "rid",
        "sampling_params",
        "tokenizer",
        by="penalties, grammar",
    ),
    *calls(f"{_SCHEDULE}:FINISH_ABORT", "message", by="grammar.end_refused"),
    *has(f"{_SCHEDULE}:ScheduleBatch", by="penalties"),
    *has(f"{_SCHEDULE}:ScheduleBatch", "reqs", "sampling_info", by="penalties"),
    *has(f"{_SPEC}.eagle_info:EagleVerifyInput", by="penalties, cpu.pruning"),
    *has(
        f"{_SAMPLING}.sampling_params:SamplingParams",
        "frequency_penalty",
        "min_new_tokens",
        "presence_penalty",
        "stop_token_ids",
        by="penalties",
    ),
    *has(
        f"{_SAMPLING}.penaltylib.orchestrator:BatchedPenalizerOrchestrator",
        "is_required",
        by="penalties",
    ),
    *has(
        "sglang.srt.managers.scheduler:Scheduler",
        "enable_metrics",
        "metrics_collector",
        by="counters.export",
    ),
    *has("sglang.srt.metrics.collector:SchedulerMetricsCollector", "labels", by="counters.export"),
    *has("sglang.srt.managers.io_struct:BatchTokenIDOutput", by="counters.attach"),
    *has("sglang.srt.managers.io_struct:BatchStrOutput", by="counters.carry"),
)

CONTRACT: tuple[Use, ...] = (
    *_FLAGS,
    *_ALGORITHM,
    *_DRAFT_MODEL,
    *CPU_ENGINE,
    *_REQUESTS,
    *MODES,
)


def check_contract(root: Path) -> list[Mismatch]:
    """What the SGLang in the package folder ``root`` does not offer as this table expects it.

    Raises:
        OSError: a source file of SGLang cannot be read.
    """
    return check_uses(root, "sglang", CONTRACT)
