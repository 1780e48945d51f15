"""Seconds of a described GPU: arithmetic and bytes over stated fractions of its peaks, or, where
that is less, the time that small kernels take whatever they compute. (Ours.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.plan.counts import Counts, Seconds, kv_width, muon_matrices, target_matmul
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.settings.file import read_settings
from sgl_entropy.train.settings.fit import FitSettings

# Fractions of a GPU's peaks that a plan counts on.
GPU_COMPUTE, GPU_BANDWIDTH = 0.35, 0.6
# Seconds of a small kernel, from an H200's record (docs/training.md, The shipped pair): an EDSD and
# an EAGLE-3 training beside each other made 69 steps a second together, at 633 and 587 kernels a
# step: 24 microseconds a kernel; ten small EDSD trainings made 80: 20. That rate is the GPU's: two
# trainings on it take turns. Of one alone there is no record; a GPU that one process cannot keep
# busy would take up to twice as long.
KERNEL_SECONDS = 22e-6
# Kernels of an optimizer step, as ``fit`` makes them (a test counts them again): of a step as such,
# of each draft step, and of each draft step for every one before it, whose rows it attends to.
_STEP, _DRAFT_STEP, _EARLIER = 78, {"EDSD": 262, "EAGLE3": 242}, 17
# Of each matrix that Muon moves, and of each of the target's layers.
_MUON, _TARGET_LAYER = 33, 46


@dataclass(frozen=True)
class Gpu:
    """A described GPU: dense bfloat16 FLOP/s, memory bandwidth in bytes/s, memory in bytes, and
    float32 FLOP/s (without TF32, which torch leaves off)."""

    flops: float
    bandwidth: float
    memory: float
    float32: float


# Vendors' data sheets, dense.
GPUS = {
    "a100": Gpu(312e12, 2.0e12, 80e9, 19.5e12),
    "h100": Gpu(989e12, 3.35e12, 80e9, 67e12),
    "h200": Gpu(989e12, 4.8e12, 141e9, 67e12),
    "l40s": Gpu(362e12, 0.864e12, 48e9, 91.6e12),
    "rtx4090": Gpu(165e12, 1.0e12, 24e9, 82.6e12),
}

# What a file that describes one says, and by how much each number is to be multiplied.
_DESCRIBED = {
    "bfloat16_tflops": ("flops", 1e12),
    "float32_tflops": ("float32", 1e12),
    "bandwidth_gb_s": ("bandwidth", 1e9),
    "memory_gb": ("memory", 1e9),
}


def gpu_named(given: str) -> Gpu:
    """A GPU of ``GPUS``, or the one that a TOML or JSON file describes by ``bfloat16_tflops`` and
    ``float32_tflops`` (dense peaks), ``bandwidth_gb_s`` and ``memory_gb``, each above 0.

    Raises:
        ValueError: neither; says which names there are, or what is wrong with the file.
    """
    if given in GPUS:
        return GPUS[given]
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(
            f"--gpu must be one of {', '.join(GPUS)} or a file with {', '.join(_DESCRIBED)}, "
            f"found {given!r}"
        )
    held = read_settings(path)
    wrong = [f"unknown key {key}" for key in sorted(set(held) - set(_DESCRIBED))]
    values = {}
    for key, (name, unit) in _DESCRIBED.items():
        value = held.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            wrong.append(f"{key} must be a number above 0, found {value!r}")
        else:
            values[name] = value * unit
    if wrong:
        raise ValueError("\n".join(f"--gpu {path}: {line}" for line in wrong))
    return Gpu(**values)


def fit_kernels(
    config: DrafterConfig, fit: FitSettings, optimizer_steps: int, target_layers: int
) -> int:
    """Kernels of all optimizer steps.

    Args:
        optimizer_steps: of all epochs.
        target_layers: of a target that runs over every batch; 0 where features are there.
    """
    each = _STEP + _TARGET_LAYER * target_layers + _MUON * len(muon_matrices(config, fit))
    kernels = 0.0
    for epoch in range(fit.epochs):
        steps = fit.steps_in(epoch)
        draft = _DRAFT_STEP[config.algorithm] * steps + _EARLIER * steps * (steps - 1) / 2
        kernels += optimizer_steps / fit.epochs * (each + draft)
    return round(kernels)


def bound_by_kernels(gpu: Gpu, counts: Counts, kernels: int) -> bool:
    """Whether small kernels take a fit's time, not arithmetic: then trainings beside each other on
    one GPU take turns, and more rows a step are nearly free."""
    return kernels * KERNEL_SECONDS > _arithmetic(gpu, counts)


def _arithmetic(gpu: Gpu, counts: Counts) -> float:
    return (counts.fit_flops + counts.online_flops) / (gpu.flops * GPU_COMPUTE)


def gpu_seconds(
    gpu: Gpu,
    counts: Counts,
    lengths: Lengths,
    target: Mapping[str, Any],
    slots: int,
    kernels: int,
) -> Seconds:
    """On one described GPU that has nothing else to do.

    Prefill and the target's forward over answers are bound by arithmetic, fitting by that or by its
    ``kernels``. A decode step of ``slots`` sequences reads the weights and every slot's keys and
    values once, beside its small kernels (or computes for longer than both).
    """
    compute = gpu.flops * GPU_COMPUTE
    fit = max(_arithmetic(gpu, counts), kernels * KERNEL_SECONDS)
    fit += counts.optimizer_flops / (gpu.float32 * GPU_COMPUTE)
    basis = (
        f"{GPU_COMPUTE:.0%} of its FLOP/s, {GPU_BANDWIDTH:.0%} of its bandwidth, at least "
        f"{KERNEL_SECONDS * 1e6:.0f} µs a kernel (ours, from one H200)"
    )
    features = counts.feature_flops / compute
    new = lengths.new
    if not new:
        return Seconds(features, fit, basis)
    answer = sum(entry.length - entry.prompt_length for entry in new)
    tokens = sum(entry.length for entry in new)
    slots = min(slots, len(new))
    held = 2 * 2 * kv_width(target) * int(target["num_hidden_layers"])  # bytes a token, bfloat16
    weights = 2.0 * (target_matmul(target) + int(target["hidden_size"]) * int(target["vocab_size"]))
    read = (weights + slots * held * tokens / len(new)) / (gpu.bandwidth * GPU_BANDWIDTH)
    small = KERNEL_SECONDS * _TARGET_LAYER * int(target["num_hidden_layers"])
    decode = counts.generate_flops * answer / tokens
    prefill = (counts.generate_flops - decode) / compute
    return Seconds(
        features + prefill + max(answer / slots * (read + small), decode / compute), fit, basis
    )
