"""What a training comes to, whatever the machine: tokens, bytes, rows, FLOPs, optimizer steps.

Counts follow from the target's config, the sequences (``lengths``) and the schedules. (Ours.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.samples.device_cache import cached_bytes
from sgl_entropy.train.schedules import masked_percent
from sgl_entropy.train.settings.fit import FitSettings

# ``fit.reached_only``: the share of chains at a draft step that get to the next one. Over the two
# epochs of the small target's trainings of 120k tokens it is 0.42; a good drafter's get further.
REACHED = 0.5


@dataclass(frozen=True)
class Counts:
    """
    Attributes:
        answer_tokens, tokens: of all sequences; tokens count prompts too.
        store_bytes: of the feature store; 0 where features are computed online.
        generate_flops: prefill and decoding of the answers that are not there yet.
        feature_flops: the target's forward over answers that have no features in the store.
        online_flops: the target's forward over what is learned from, while it is learned.
        fit_rows: rows through the drafter's layer, of all epochs and draft steps.
        fit_flops, optimizer_flops: see ``training_flops`` and ``muon_flops``.
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
        layers: how many the store keeps.
    """
    learned, first = lengths.learned(fit), lengths.prompt_from(fit)
    chains = [chain_count(entry, first) for entry in learned]
    most = max(fit.steps_in(epoch) for epoch in range(fit.epochs))
    at_step = [sum(max(0, one - step) for one in chains) for step in range(most)]
    rows, head_rows = 0, 0.0
    for epoch in range(fit.epochs):
        shares = unrolled_shares(fit, epoch)
        unrolled = round(sum(map(math.prod, zip(at_step, shares, strict=False))))
        rows += unrolled
        head_rows += unrolled * (1 - masked_percent(epoch, fit.epochs, fit.mask_gamma) / 100)
    steps = fit.epochs * len(plan_epoch(learned, fit.rows, fit.seed, 0, first))
    token = _target_flops(target)
    online = 0.0
    if fit.online:
        passes = 1 if keeps_features(config, lengths, fit) else fit.epochs
        seen = [*learned, *lengths.held_out(fit)] if passes == 1 else learned
        online = token * passes * sum(entry.length for entry in seen)
    stored = lengths.tokens * row_bytes(int(target["hidden_size"]), layers)
    return Counts(
        answer_tokens=lengths.answer_tokens,
        tokens=lengths.tokens,
        store_bytes=0 if fit.online else stored,
        generate_flops=token * sum(entry.length for entry in lengths.new),
        feature_flops=0.0 if fit.online else token * sum(e.length for e in lengths.unread),
        online_flops=online,
        fit_rows=rows,
        fit_flops=training_flops(config, rows, head_rows),
        optimizer_flops=steps * muon_flops(config, fit),
        optimizer_steps=steps,
        parameters=sum(math.prod(shape) for shape in _learned(config).values()),
    )


def unrolled_shares(fit: FitSettings, epoch: int) -> list[float]:
    """The share of chains that are unrolled to each draft step of an epoch."""
    go_on = REACHED if fit.reached_only else 1.0
    return [go_on**step for step in range(fit.steps_in(epoch))]


def keeps_features(config: DrafterConfig, lengths: Lengths, fit: FitSettings) -> bool:
    """Whether ``fit.hold_gb`` has room for the features of all that is learned and validated."""
    return 0 < kept_bytes(config, lengths, fit) <= fit.hold_gb * 1e9


def kept_bytes(config: DrafterConfig, lengths: Lengths, fit: FitSettings) -> int:
    """Bytes of those features on the device."""
    kept, taps = [*lengths.learned(fit), *lengths.held_out(fit)], config.target_layer_ids or ()
    return cached_bytes(kept, len(taps), config.target_hidden_size, lengths.prompt_from(fit))


def row_bytes(width: int, layers: int) -> int:
    """Bytes of a token in the store: the tapped layers' and the final state in bfloat16; entropy,
    best token and the token itself in 4 bytes each."""
    return 2 * width * (layers + 1) + 12


def training_flops(config: DrafterConfig, layer_rows: float, head_rows: float) -> float:
    """Floating-point operations of rows that were trained: 6 a weight and row, forward and
    backward, of the layer (fusion included) and of the head. Attention scores, ``fc`` and the
    target's side are left out: a few percent, the same for all schedules."""
    layer = head = 0
    for name, shape in _learned(config).items():
        if name.startswith("lm_head."):
            head += math.prod(shape)
        elif len(shape) == 2 and not name.startswith("fc."):
            layer += math.prod(shape)
    return 6.0 * (layer * layer_rows + head * head_rows)


def muon_flops(config: DrafterConfig, fit: FitSettings) -> float:
    """Of one optimizer step, in float32: for each matrix that Muon moves (``Optimizers`` chooses
    them) five rounds of three matmuls of its shorter side. 0 with AdamW."""
    if fit.optimizer != "muon":
        return 0.0
    sides = [
        (min(shape), max(shape))
        for name, shape in _learned(config).items()
        if len(shape) == 2 and not name.startswith(("fc.", "edfuse.", "lm_head."))
    ]
    return sum(5.0 * (4 * short**2 * long + 2 * short**3) for short, long in sides)


def _learned(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the learned weights: all but the two maps of the draft vocabulary."""
    return {name: shape for name, shape in config.tensor_shapes().items() if "2" not in name}


def _target_flops(target: Mapping[str, Any]) -> float:
    """Of the target's matmuls over a token, its head included."""
    d, inner = int(target["hidden_size"]), int(target["intermediate_size"])
    heads = int(target["num_attention_heads"])
    head_dim = int(target.get("head_dim") or d // heads)
    kv_heads = int(target.get("num_key_value_heads") or heads)
    attention = 2 * d * head_dim * (heads + kv_heads)
    layers = int(target["num_hidden_layers"]) * (attention + 3 * d * inner)
    return 2.0 * (layers + d * int(target["vocab_size"]))
