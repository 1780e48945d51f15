"""What a training will cost, before it runs: tokens, FLOPs, storage, time and memory.

Counts follow from the target's config, the prompts and the schedules. Seconds of this machine are
measured (``plan_trial``); those of a described GPU are FLOPs and bytes over stated fractions of its
peaks. (Ours.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.train.fit_settings import FitSettings
from sgl_entropy.train.generate import Prompt
from sgl_entropy.train.schedules import masked_percent
from sgl_entropy.train.store import Store

# How long an answer is where nothing is stored yet, as a fraction of the longest allowed: the
# small target's answers to our prompts (397,281 tokens to 3,949 prompts of at most 192).
ANSWER_FRACTION = 0.52
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
class Lengths:
    """What a training is made of.

    Attributes:
        sequences: that are answered, held-out ones included.
        prompt, answer: mean tokens of each.
        origin: where the means come from.
        longest_prompt, longest_answer: tokens; 0 = not known, the mean is taken.
    """

    sequences: int
    prompt: float
    answer: float
    origin: str
    longest_prompt: int = 0
    longest_answer: int = 0


def expected_lengths(
    prompts: Sequence[Prompt], answer_tokens: int, max_new_tokens: int, store: Store | None
) -> Lengths:
    """Means from the store where one was begun, else from the prompts and ``ANSWER_FRACTION``."""
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    known = len(prompts)
    if store is not None:
        answer = store.answer_tokens() / len(store.entries)
        asked = statistics.fmean(entry.prompt_length for entry in store.entries)
        longest = max(longest, *(entry.prompt_length for entry in store.entries))
        known = max(known, len(store.entries))
        origin = f"{len(store.entries)} stored answers"
    else:
        answer = ANSWER_FRACTION * max_new_tokens
        asked = statistics.fmean(len(prompt.tokens) for prompt in prompts)
        origin = f"assumed: {ANSWER_FRACTION:.0%} of {max_new_tokens} tokens an answer"
    sequences = min(known, math.ceil(answer_tokens / answer))
    return Lengths(sequences, asked, answer, origin, longest, max_new_tokens)


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
    tokens = lengths.sequences * (lengths.prompt + lengths.answer)
    answer_tokens = lengths.sequences * lengths.answer
    trained = trained_sequences(lengths, fit)
    chains = chains_of(lengths, fit)
    layer, head = trained_weights(config)
    rows = head_rows = 0.0
    for epoch in range(fit.epochs):
        kept = 1 - masked_percent(epoch, fit.epochs, fit.mask_gamma) / 100
        for step in range(fit.steps_in(epoch)):
            rows += trained * (chains - step)
            head_rows += trained * (chains - step) * kept
    matmul = target_matmul(target)
    head_size = d * int(target["vocab_size"])
    return Counts(
        round(answer_tokens),
        round(tokens),
        round(tokens * row_bytes(d, layers)),
        2.0 * tokens * (matmul + head_size),
        round(rows),
        6.0 * (layer * rows + head * head_rows),
        fit.epochs * math.ceil(trained * chains / fit.rows),
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


def trained_sequences(lengths: Lengths, fit: FitSettings) -> float:
    """Sequences that are learned from in an epoch."""
    kept = lengths.sequences * (1 - 1 / fit.validation_every)
    return min(kept, fit.answer_tokens / lengths.answer) if fit.answer_tokens else kept


def chains_of(lengths: Lengths, fit: FitSettings) -> float:
    """Mean chains of a sequence. Learning from prompts begins behind a template's shared head."""
    return lengths.answer - 1 + (max(0.0, lengths.prompt - 4) if fit.prompt_rows else 0.0)


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
        "lengths": asdict(lengths),
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
