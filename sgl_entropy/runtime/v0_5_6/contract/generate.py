"""Write down every use that we make of SGLang: ``python -m ...contract.generate``.

Our modules and the lines of the patches are read, and SGLang's released sources say what each use
has to look like; nothing of SGLang is imported. Run it where that release is installed, after
every change of what we use; a test compares.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import sgl_entropy
from sgl_entropy import patching
from sgl_entropy.apiuse.scan import Part, uses_of
from sgl_entropy.apiuse.sources import Module, SourceTree
from sgl_entropy.apiuse.uses import Kind, Use, dump_uses, use
from sgl_entropy.patching.state import survey, upstream_contents
from sgl_entropy.patching.verbs import patched_contents
from sgl_entropy.runtime.v0_5_6.contract.table import USES_FILE

_ROOT = Path(sgl_entropy.__file__).parent
_ROOMS = ("runtime/v0_5_6", "serving")
_TAPS = "the patches of feature taps"

# Class in sglang.srt -> names of its objects in our code. SGLang's worker calls on our
# ``EdsdDraftModel`` what it calls on its own drafter.
_OBJECTS = {
    "configs.model_config:ModelConfig": "model_config",
    "layers.layernorm:RMSNorm": "post_attention_layernorm",
    "layers.logits_processor:LogitsProcessorOutput": "out output",
    "managers.io_struct:EmbeddingReqInput": "request",
    "managers.io_struct:GenerateReqInput": "request",
    "managers.schedule_batch:Req": "req",
    "managers.schedule_batch:ScheduleBatch": "work",
    "managers.scheduler:Scheduler": "scheduler",
    "managers.tp_worker:TpModelWorker": "target_worker",
    "mem_cache.memory_pool:KVCache": "pool",
    "mem_cache.memory_pool:MHATokenToKVPool": "pool",
    "mem_cache.memory_pool:ReqToTokenPool": "req_to_token_pool",
    "metrics.collector:SchedulerMetricsCollector": "metrics_collector",
    "model_executor.forward_batch_info:ForwardBatch": "batch forward_batch",
    "model_executor.forward_batch_info:ForwardMode": "mode forward_mode",
    "model_executor.model_runner:ModelRunner": "runner model_runner",
    "model_loader.weight_utils:default_weight_loader": "loader",
    "models.llama:LlamaAttention": "self_attn",
    "models.llama:LlamaMLP": "mlp",
    "models.llama_eagle3:LlamaForCausalLMEagle3": "EdsdDraftModel",
    "models.registry:_ModelRegistry": "registry",
    "sampling.penaltylib.orchestrator:BatchedPenalizerOrchestrator": "penalizer_orchestrator",
    "sampling.sampling_batch_info:SamplingBatchInfo": "info",
    "sampling.sampling_params:SamplingParams": "params sampling_params",
    "server_args:ServerArgs": "args get_global_server_args",
    "speculative.eagle_draft_cuda_graph_runner:EAGLEDraftCudaGraphRunner": "runner",
    "speculative.eagle_info:EagleDraftInput": "spec spec_info",
    "speculative.eagle_info:EagleVerifyInput": "spec_info",
    "speculative.eagle_info:EagleVerifyOutput": "verified",
    "speculative.eagle_worker:EAGLEWorker": "worker",
    "speculative.spec_info:register_speculative_algorithm": "register_speculative_algorithm",
}

# What this reading cannot see, each with its reason: kind, where in sglang.srt, parameters, by.
_BY_HAND: tuple[tuple[Kind, str, str, str], ...] = (
    # Its keyword arguments are SGLang's scheduler's, which create_worker hands on as **kwargs.
    (
        "calls",
        "speculative.eagle_worker:EAGLEWorker",
        "server_args= gpu_id= tp_rank= dp_rank= moe_ep_rank= nccl_port= target_worker=",
        "worker",
    ),
    # The target is an object of any model's class; this is the tested family's.
    ("calls", "models.llama:LlamaForCausalLM.set_eagle3_layers_to_capture", "layer_ids", _TAPS),
    # Stands before those patches' lines, and is true for EDSD by the flags it registers with.
    ("calls", "speculative.spec_info:SpeculativeAlgorithm.is_eagle3", "", _TAPS),
    # RMSNorm.forward takes anything and calls this.
    ("calls", "layers.layernorm:RMSNorm.forward_native", "x residual", "models"),
    # Reads the dictionary that the patch puts our backend into.
    (
        "has",
        "speculative.draft_utils:DraftBackendFactory._create_backend",
        "",
        "the patches of draft_utils",
    ),
    # Makes an object of what add_cli_args has defined, our flags too.
    ("calls", "server_args:ServerArgs.from_cli_args", "args", "the patches of server_args"),
)


def generate() -> tuple[Use, ...]:
    """Every use, read from our sources and those of the installed release, patched or not.

    Raises:
        PatchError: SGLang is not installed, or is no release that we patch.
        ValueError: we use an attribute of SGLang's that its release does not define.
    """
    install = patching.find_sglang()
    series = patching.load_series(install.version)
    upstream = upstream_contents(install, series, survey(install, series))
    host = SourceTree(
        install.root, "sglang", {_dotted(n): d for n, d in upstream.items() if d is not None}
    )
    parts = [*_our_parts()]
    for name, data in patched_contents(series, upstream).items():
        if data is not None:
            module = Module(_dotted(name), data, Path(name))
            added = _added(upstream[name] or b"", data)
            parts.append(Part(module, f"the patches of {Path(name).stem}", added))
    objects = {f"sglang.srt.{where}": names for where, names in _OBJECTS.items()}
    by_hand = (use(k, f"sglang.srt.{w}", *names.split(), by=by) for k, w, names, by in _BY_HAND)
    uses = {*uses_of(host, parts, objects), *by_hand}
    return tuple(sorted(uses, key=lambda each: each.order))


def _our_parts() -> Iterator[Part]:
    for file in sorted(file for room in _ROOMS for file in (_ROOT / room).rglob("*.py")):
        name = _dotted(file.relative_to(_ROOT.parent).as_posix())
        if ".contract" not in name:
            by = name.removeprefix("sgl_entropy.").removeprefix("runtime.v0_5_6.")
            yield Part(Module(name, file.read_bytes(), file), by)


def _dotted(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _added(before: bytes, after: bytes) -> frozenset[int]:
    """Numbers of the lines that the patches add."""
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    return frozenset(
        line + 1
        for kind, _, _, start, end in matcher.get_opcodes()
        if kind in ("insert", "replace")
        for line in range(start, end)
    )


if __name__ == "__main__":
    USES_FILE.write_text(dump_uses(generate()), encoding="utf-8")
