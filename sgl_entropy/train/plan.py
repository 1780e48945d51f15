"""What a training will cost, before it runs: tokens, FLOPs, storage, time and memory.

Counts follow from the target's config, the sequences (``plan_lengths``) and the schedules. Seconds
of this machine are measured (``plan_trial``); those of a described GPU are FLOPs and bytes over
stated fractions of its peaks. (Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.train.batches import chain_count, plan_epoch
from sgl_entropy.train.fit_settings import FitSettings
from sgl_entropy.train.plan_lengths import Lengths
from sgl_entropy.train.schedules import masked_percent

# Fractions of a GPU's peaks that a plan counts on.
GPU_COMPUTE, GPU_BANDWIDTH = 0.35, 0.6


@dataclass(frozen=True)
class Gpu:
    """A described GPU: dense bfloat16 FLOP/s, memory bandwidth in bytes/s, memory in bytes."""

    flops: float
    bandwidth: float
    memory: float


# Vendors' data sheets, dense bfloat16.
GPUS = {
    "a100": Gpu(312e12, 2.0e12, 80e9),
    "h100": Gpu(989e12, 3.35e12, 80e9),
    "h200": Gpu(989e12, 4.8e12, 141e9),
    "l40s": Gpu(362e12, 0.864e12, 48e9),
    "rtx4090": Gpu(165e12, 1.0e12, 24e9),
}


@dataclass(frozen=True)
class Counts:
    """What does not depend on the machine.

    Attributes:
        answer_tokens, tokens: of all sequences; tokens count prompts too.
        store_bytes: of the feature store.
        generate_flops: prefill and decoding.
        fit_rows: rows through the drafter's layer, of all epochs and draft steps.
        fit_flops: see ``fit_costs.flops``.
        optimizer_steps: of all epochs.
        parameters: that are learned.
    """

    answer_tokens: int
    tokens: int
    store_bytes: int
    generate_flops: float
    fit_rows: int
    fit_flops: float
    optimizer_steps: int
    parameters: int


def count(
    lengths: Lengths,
    target: Mapping[str, Any],
    layers: int,
    config: DrafterConfig,
    fit: FitSettings,
) -> Counts:
    """
    Args:
        target: the target's ``config.json``.
        layers: that the store keeps.
    """
    d = int(target["hidden_size"])
    learned, first = lengths.learned(fit), lengths.prompt_from(fit)
    chains = [chain_count(entry, first) for entry in learned]
    layer, head = trained_weights(config)
    most = max(fit.steps_in(epoch) for epoch in range(fit.epochs))
    at_step = [sum(max(0, one - step) for one in chains) for step in range(most)]
    rows, head_rows = 0, 0.0
    for epoch in range(fit.epochs):
        unrolled = sum(at_step[: fit.steps_in(epoch)])
        rows += unrolled
        head_rows += unrolled * (1 - masked_percent(epoch, fit.epochs, fit.mask_gamma) / 100)
    matmul = target_matmul(target)
    head_size = d * int(target["vocab_size"])
    return Counts(
        lengths.answer_tokens,
        lengths.tokens,
        lengths.tokens * row_bytes(d, layers),
        2.0 * lengths.tokens * (matmul + head_size),
        rows,
        6.0 * (layer * rows + head * head_rows),
        fit.epochs * len(plan_epoch(learned, fit.rows, fit.seed, 0, first)),
        sum(math.prod(shape) for name, shape in config.tensor_shapes().items() if "2" not in name),
    )


def row_bytes(width: int, layers: int) -> int:
    """Bytes of a token in the store: the tapped layers' and the final state in bfloat16; entropy,
    best token and the token itself in 4 bytes each."""
    return 2 * width * (layers + 1) + 12


def target_matmul(target: Mapping[str, Any]) -> int:
    """Weights of the target's matmuls, its head left out."""
    d, inner = int(target["hidden_size"]), int(target["intermediate_size"])
    heads = int(target["num_attention_heads"])
    kv_heads = int(target.get("num_key_value_heads") or heads)
    head_dim = int(target.get("head_dim") or d // heads)
    attention = d * head_dim * (2 * heads + 2 * kv_heads)
    return int(target["num_hidden_layers"]) * (attention + 3 * d * inner)


def trained_weights(config: DrafterConfig) -> tuple[int, int]:
    """(layer with its fusion, head): entries of the weight matrices, ``fc`` left out."""
    layer = head = 0
    for name, shape in config.tensor_shapes().items():
        if name.startswith("lm_head."):
            head += math.prod(shape)
        elif len(shape) == 2 and not name.startswith("fc."):
            layer += math.prod(shape)
    return layer, head


@dataclass(frozen=True)
class Seconds:
    """Expected wall time of the two long stages, and what it rests on."""

    generate: float
    fit: float
    basis: str


def gpu_seconds(
    gpu: Gpu, counts: Counts, lengths: Lengths, target: Mapping[str, Any], slots: int
) -> Seconds:
    """On one described GPU: prefill and fitting bound by arithmetic, decoding by reading the
    weights once a step of ``slots`` sequences (or by arithmetic, where that takes longer)."""
    weights = 2.0 * (target_matmul(target) + int(target["hidden_size"]) * int(target["vocab_size"]))
    steps = counts.answer_tokens / min(slots, lengths.sequences)
    decode_flops = counts.generate_flops * counts.answer_tokens / counts.tokens
    prefill = (counts.generate_flops - decode_flops) / (gpu.flops * GPU_COMPUTE)
    decode = max(
        steps * weights / (gpu.bandwidth * GPU_BANDWIDTH),
        decode_flops / (gpu.flops * GPU_COMPUTE),
    )
    basis = f"{GPU_COMPUTE:.0%} of its FLOP/s, {GPU_BANDWIDTH:.0%} of its bandwidth"
    return Seconds(prefill + decode, counts.fit_flops / (gpu.flops * GPU_COMPUTE), basis)


def as_report(
    algorithm: Algorithm,
    lengths: Lengths,
    counts: Counts,
    seconds: Seconds,
    memory: int,
) -> dict[str, Any]:
    """The report, as JSON holds it."""
    return {
        "algorithm": algorithm,
        "lengths": {
            "sequences": lengths.sequences,
            "prompt": round(lengths.prompt, 1),
            "answer": round(lengths.answer, 1),
            "origin": lengths.origin,
        },
        **asdict(counts),
        "bytes_per_token": round(counts.store_bytes / counts.tokens, 1),
        "fit_memory_bytes": memory,
        "generate_seconds": round(seconds.generate, 1),
        "fit_seconds": round(seconds.fit, 1),
        "basis": seconds.basis,
    }


def table(report: Mapping[str, Any], where: str) -> str:
    """The report for people."""
    lengths = report["lengths"]
    rows = [
        ("sequences", f"{lengths['sequences']:,}"),
        ("", f"mean prompt {lengths['prompt']:.0f}, answer {lengths['answer']:.0f} tokens"),
        ("", lengths["origin"]),
        ("answer tokens", f"{report['answer_tokens']:,} ({report['tokens']:,} with prompts)"),
        ("feature store", f"{report['store_bytes'] / 1e9:.2f} GB"),
        ("", f"{report['bytes_per_token']:.0f} bytes a token"),
        ("answers + features", f"{report['generate_flops']:.2e} FLOPs"),
        ("", f"{_duration(report['generate_seconds'])}"),
        ("fit", f"{report['fit_flops']:.2e} FLOPs, {report['fit_rows']:,} rows"),
        ("", f"{report['optimizer_steps']:,} steps, {_duration(report['fit_seconds'])}"),
        ("memory to fit", f"{report['fit_memory_bytes'] / 1e9:.2f} GB"),
    ]
    head = f"{report['algorithm']} on {where} ({report['basis']})"
    return "\n".join([head, *(f"  {name:<20} {value}" for name, value in rows)])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
