"""What a training will cost, before it runs: tokens, FLOPs, storage, time and memory.

Counts follow from the target's config, the sequences (``plan_lengths``) and the schedules. Seconds
of this machine are measured (``plan_trial``), those of a described GPU counted (``plan_gpu``).
(Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.schedules import masked_percent
from sgl_entropy.train.settings.fit import FitSettings

# ``fit.reached_only``: of the chains at a draft step, those that get to the next one. Over the two
# epochs of the small target's trainings of 120k tokens it is 0.42; a good drafter's get further.
REACHED = 0.5


@dataclass(frozen=True)
class Counts:
    """What does not depend on the machine.

    Attributes:
        answer_tokens, tokens: of all sequences; tokens count prompts too.
        store_bytes: of the feature store; 0 where features are computed online.
        generate_flops: prefill and decoding of the answers that are not there yet.
        feature_flops: the target's forward over answers that have no features in the store.
        online_flops: the target's forward over what is learned from, while it is learned.
        fit_rows: rows through the drafter's layer, of all epochs and draft steps.
        fit_flops: of those rows, see ``fit_costs.flops``.
        optimizer_flops: of Muon's matmuls, in float32.
        optimizer_steps: of all epochs.
        parameters: that are learned.
    """

    answer_tokens: int
    tokens: int
    store_bytes: int
    generate_flops: float
    feature_flops: float
    online_flops: float
    fit_rows: int
    fit_flops: float
    optimizer_flops: float
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
        shares = unrolled_shares(fit, epoch)
        unrolled = round(sum(map(math.prod, zip(at_step, shares, strict=False))))
        rows += unrolled
        head_rows += unrolled * (1 - masked_percent(epoch, fit.epochs, fit.mask_gamma) / 100)
    token = 2.0 * (target_matmul(target) + d * int(target["vocab_size"]))
    online = 0.0
    if fit.online:
        passes = 1 if fit.hold_gb * 1e9 >= held_bytes(config, lengths, fit) > 0 else fit.epochs
        seen = [*learned, *lengths.held_out(fit)] if passes == 1 else learned
        online = token * passes * sum(entry.length for entry in seen)
    optimizer_steps = fit.epochs * len(plan_epoch(learned, fit.rows, fit.seed, 0, first))
    return Counts(
        lengths.answer_tokens,
        lengths.tokens,
        0 if fit.online else lengths.tokens * row_bytes(d, layers),
        token * sum(entry.length for entry in lengths.new),
        0.0 if fit.online else token * sum(entry.length for entry in lengths.unread),
        online,
        rows,
        6.0 * (layer * rows + head * head_rows),
        optimizer_steps * sum(muon_flops(shape) for shape in muon_matrices(config, fit)),
        optimizer_steps,
        sum(math.prod(shape) for name, shape in config.tensor_shapes().items() if "2" not in name),
    )


def unrolled_shares(fit: FitSettings, epoch: int) -> list[float]:
    """Of each draft step of an epoch, the share of chains that are unrolled to it."""
    go_on = REACHED if fit.reached_only else 1.0
    return [go_on**step for step in range(fit.steps_in(epoch))]


def muon_matrices(config: DrafterConfig, fit: FitSettings) -> list[tuple[int, ...]]:
    """Shapes of the weights that Muon moves, as ``optimizer.Optimizers`` chooses them."""
    if fit.optimizer != "muon":
        return []
    others = ("fc.", "edfuse.", "lm_head.")
    shapes = config.tensor_shapes().items()
    return [shape for name, shape in shapes if len(shape) == 2 and not name.startswith(others)]


def muon_flops(shape: Sequence[int]) -> float:
    """Of one matrix and step: five rounds of three matmuls of its shorter side."""
    short, long = min(shape), max(shape)
    return 5.0 * (4 * short**2 * long + 2 * short**3)


def held_bytes(config: DrafterConfig, lengths: Lengths, fit: FitSettings) -> int:
    """Bytes of all features that ``fit.hold_gb`` keeps on the device, see ``held.hold_rows``."""
    d, first = config.target_hidden_size, lengths.prompt_from(fit)
    kept = [*lengths.learned(fit), *lengths.held_out(fit)]
    rows = sum(entry.length - 2 for entry in kept)
    chains = sum(chain_count(entry, first) for entry in kept)
    return 2 * rows * config.tap_width + chains * (2 * d + 12)


def row_bytes(width: int, layers: int) -> int:
    """Bytes of a token in the store: the tapped layers' and the final state in bfloat16; entropy,
    best token and the token itself in 4 bytes each."""
    return 2 * width * (layers + 1) + 12


def target_matmul(target: Mapping[str, Any]) -> int:
    """Weights of the target's matmuls, its head left out."""
    d, inner = int(target["hidden_size"]), int(target["intermediate_size"])
    heads = int(target["num_attention_heads"])
    head_dim = int(target.get("head_dim") or d // heads)
    attention = d * 2 * (head_dim * heads + kv_width(target))
    return int(target["num_hidden_layers"]) * (attention + 3 * d * inner)


def kv_width(target: Mapping[str, Any]) -> int:
    """Numbers of a token's keys (and as many of its values) in one layer of the target."""
    heads = int(target["num_attention_heads"])
    head_dim = int(target.get("head_dim") or int(target["hidden_size"]) // heads)
    return int(target.get("num_key_value_heads") or heads) * head_dim


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


def as_report(
    algorithm: Algorithm,
    lengths: Lengths,
    counts: Counts,
    seconds: Seconds,
    memory: Mapping[str, int],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The report, as JSON holds it.

    Args:
        memory: bytes that ``generate`` and ``fit`` need.
        notes: what a reader has to know.
    """
    return {
        "algorithm": algorithm,
        "lengths": {
            "sequences": lengths.sequences,
            "to_generate": len(lengths.new),
            "prompt": round(lengths.prompt, 1),
            "answer": round(lengths.answer, 1),
            "origin": lengths.origin,
        },
        **asdict(counts),
        "bytes_per_token": round(counts.store_bytes / counts.tokens, 1),
        "generate_memory_bytes": memory["generate"],
        "fit_memory_bytes": memory["fit"],
        "generate_seconds": round(seconds.generate, 1),
        "fit_seconds": round(seconds.fit, 1),
        "basis": seconds.basis,
        "notes": list(notes),
    }


def table(report: Mapping[str, Any], where: str) -> str:
    """The report for people."""
    lengths = report["lengths"]
    store = f"{report['store_bytes'] / 1e9:.2f} GB"
    made = report["generate_flops"] + report["feature_flops"]
    learned = report["fit_flops"] + report["online_flops"] + report["optimizer_flops"]
    rows = [
        ("sequences", f"{lengths['sequences']:,} ({lengths['to_generate']:,} to be answered)"),
        ("", f"mean prompt {lengths['prompt']:.0f}, answer {lengths['answer']:.0f} tokens"),
        ("", lengths["origin"]),
        ("answer tokens", f"{report['answer_tokens']:,} ({report['tokens']:,} with prompts)"),
        ("feature store", store if report["store_bytes"] else "none: features are computed online"),
        ("", f"{report['bytes_per_token']:.0f} bytes a token" if report["store_bytes"] else ""),
        ("answers + features", f"{made:.2e} FLOPs, {_duration(report['generate_seconds'])}"),
        ("", f"{report['generate_memory_bytes'] / 1e9:.2f} GB of memory" if made else ""),
        ("fit", f"{learned:.2e} FLOPs, {report['fit_rows']:,} rows"),
        ("", _part(report, "online_flops", "by the target, online")),
        ("", _part(report, "optimizer_flops", "by Muon, in float32")),
        ("", f"{report['optimizer_steps']:,} steps, {_duration(report['fit_seconds'])}"),
        ("", f"{report['fit_memory_bytes'] / 1e9:.2f} GB of memory"),
    ]
    head = f"{report['algorithm']} on {where} ({report['basis']})"
    lines = [f"  {name:<20} {value}" for name, value in rows if value]
    return "\n".join([head, *lines, *(f"note: {note}" for note in report["notes"])])


def _part(report: Mapping[str, Any], name: str, what: str) -> str:
    return f"{report[name]:.2e} of them {what}" if report[name] else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
