"""What fitting holds at its peak, in bytes: weights, and what a largest batch keeps for backward.
And what generating holds: weights and slots.

The counts of kept values a row are of ``unrolled_loss`` as it is; a test compares them with what
autograd really saves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.plan.counts import (
    held_bytes,
    kv_width,
    muon_matrices,
    row_bytes,
    target_matmul,
    trained_weights,
)
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.settings.file import GenerateSettings
from sgl_entropy.train.settings.fit import FitSettings

# Bytes a row keeps for each of d: around the fusion (norms in float32, its inputs) and around
# attention and MLP. Of each tap, float32 and the matmuls' copy. Projections to m and to the MLP's
# width keep four tensors: gate, its SiLU, up and the product.
_FUSION, _LAYER, _TAP, _GATED = 28, 36, 6, 4
# What the last draft step takes on its way: of each logit, float32, the products with the target,
# and their copies; of each score of attention, float32 without and with the drafted rows' own.
_LOGIT, _SCORE = 12, 8
# Of each tap, as the batch holds it.
_STORED = 2
# Rows whose logits over the whole vocabulary the target makes at once, on a GPU.
_JUDGED = 1024
# Epochs whose batches are looked through.
_EPOCHS = 4


def fit_memory(config: DrafterConfig, fit: FitSettings, lengths: Lengths, wide: int) -> int:
    """Bytes that fitting holds, above what torch itself takes.

    Args:
        wide: bytes of a number in the matmuls, 2 or 4.
    """
    shapes = config.tensor_shapes()
    learned = sum(math.prod(shape) for name, shape in shapes.items() if "2" not in name)
    layer, head = trained_weights(config)
    # float32 weights, gradients and AdamW's two moments, of which Muon has one; in bfloat16 also
    # copies for the matmuls.
    weights = 16 * learned + (wide * (layer + head) if wide < 4 else 0)
    weights -= 4 * sum(math.prod(shape) for shape in muon_matrices(config, fit))
    target = wide * (config.vocab_size * config.target_hidden_size + head)
    return round(weights + target + largest_batch(config, fit, lengths, wide))


def online_memory(
    config: DrafterConfig, fit: FitSettings, lengths: Lengths, model: Mapping[str, Any], wide: int
) -> int:
    """Bytes that ``fit.online`` holds beside the fit: the target, and the features that are kept,
    or else what one batch takes of it: inputs, MLP and taps of its rows, and some rows' logits.

    Args:
        model: the target's ``config.json``; wide: bytes of a number in the target.
    """
    if not fit.online:
        return 0
    weights = wide * target_matmul(model)  # the embedding, and a head tied to it, are the fit's
    if not model.get("tie_word_embeddings"):
        weights += wide * int(model["vocab_size"]) * config.target_hidden_size
    held = held_bytes(config, lengths, fit)
    if held <= fit.hold_gb * 1e9:
        return weights + held
    entries, first = lengths.learned(fit), lengths.prompt_from(fit)
    rows = max(
        len(batch) * max(entry.length for entry in batch)
        for batch in plan_epoch(entries, fit.rows, fit.seed, 0, first)
    )
    row = 4 * config.target_hidden_size + 3 * int(model["intermediate_size"]) + config.tap_width
    return weights + wide * (rows * row + _JUDGED * int(model["vocab_size"]))


def generate_memory(
    lengths: Lengths, given: GenerateSettings, model: Mapping[str, Any], taps: int, wide: int
) -> int:
    """Bytes that all generating workers hold together: each the target, its slots' keys and values
    up to the longest sequence, their features where ``taps`` layers are stored in the same pass,
    and a step's logits. 0 where nothing is to be generated.

    Args:
        taps: stored layers; 0 = answers alone.
        wide: bytes of a number in the target.
    """
    new = lengths.new
    if not new:
        return 0
    d, layers, vocab = (
        int(model[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    workers = min(given.workers, len(new)) if taps else 1
    slots = min(given.slots, -(-len(new) // workers))
    longest = max(entry.prompt_length for entry in new) + given.max_new_tokens
    tied = 1 if model.get("tie_word_embeddings") else 2
    weights = wide * (target_matmul(model) + tied * vocab * d)
    token = 2 * wide * layers * kv_width(model) + (row_bytes(d, taps) if taps else 8)
    return workers * (weights + slots * (longest * token + vocab * wide))


def largest_batch(config: DrafterConfig, fit: FitSettings, lengths: Lengths, wide: int) -> float:
    """Bytes of the batch that holds most, of a few epochs' batches as the fit makes them, with the
    most draft steps that it unrolls. Such a batch has many short answers behind long prompts."""
    steps = max(fit.steps_in(epoch) for epoch in range(fit.epochs))
    entries, first = lengths.learned(fit), lengths.prompt_from(fit)
    return max(
        batch_bytes(config, [(e.length, chain_count(e, first)) for e in batch], steps, wide)
        for epoch in range(_EPOCHS)
        for batch in plan_epoch(entries, fit.rows, fit.seed, epoch, first)
    )


def batch_bytes(
    config: DrafterConfig, batch: Sequence[tuple[int, int]], steps: int, wide: int
) -> float:
    """Bytes of one batch, padded, on its way through ``steps`` draft steps.

    Args:
        batch: (tokens, chains) of each sequence.
    """
    length = max(tokens for tokens, _ in batch) - 2  # the last two are not verified
    rows = len(batch) * length
    chains = len(batch) * max(own for _, own in batch)
    logits = _LOGIT * sum(own for _, own in batch) * config.draft_vocab_size
    scores = _SCORE * config.num_attention_heads * length * chains
    kept = kept_bytes(config, rows, chains, length, steps, wide)
    return kept + _STORED * rows * config.tap_width + max(logits, scores)


def kept_bytes(
    config: DrafterConfig, rows: float, chains: float, length: float, steps: int, wide: int
) -> float:
    """What the forward of one batch keeps for backward, weights and their copies left out.

    Args:
        rows: verified rows of the batch; chains: its chains, both with padding.
        length: verified rows of one sequence.
    """
    d, m, inner = config.hidden_size, config.fuse_size or 0, config.intermediate_size
    fusion = _GATED * wide * m + _FUSION * d
    layer = _GATED * wide * inner + _LAYER * d
    # The weights of attention in float32, and in the matmuls' dtype where that is another.
    scores = config.num_attention_heads * length * (4 + (wide if wide < 4 else 0))
    first = rows * (fusion + _TAP * config.tap_width) + chains * (layer + scores)
    later = (steps - 1) * chains * (fusion + layer + scores)
    # The head's gradient comes with each step's loss.
    return first + later + steps * 4 * config.draft_vocab_size * d
