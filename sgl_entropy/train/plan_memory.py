"""What fitting holds at its peak, in bytes: weights, and what a largest batch keeps for backward.

The counts of kept values a row are of ``unrolled_loss`` as it is; a test compares them with what
autograd really saves.
"""

from __future__ import annotations

import math

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.fit_settings import FitSettings
from sgl_entropy.train.plan import Lengths, chains_of, trained_weights

# Bytes a row keeps for each of d: around the fusion (norms in float32, its inputs) and around
# attention and MLP. Of each tap, float32 and the matmuls' copy. Projections to m and to the MLP's
# width keep four tensors: gate, its SiLU, up and the product.
_FUSION, _LAYER, _TAP, _GATED = 28, 36, 6, 4
# Of each logit of the last draft step: float32, the products with the target, and their copies.
_LOGIT = 12


def fit_memory(config: DrafterConfig, fit: FitSettings, lengths: Lengths, wide: int) -> int:
    """Bytes that fitting holds, above what torch itself takes.

    Args:
        wide: bytes of a number in the matmuls, 2 or 4.
    """
    shapes = config.tensor_shapes()
    learned = sum(math.prod(shape) for name, shape in shapes.items() if "2" not in name)
    layer, head = trained_weights(config)
    # float32 weights, gradients and AdamW's two moments; in bfloat16 also copies for the matmuls.
    weights = 16 * learned + (wide * (layer + head) if wide < 4 else 0)
    target = wide * (config.vocab_size * config.target_hidden_size + head)
    # The longest batch: as many sequences as any, padded to the longest prompt and answer.
    sequences = max(1.0, fit.rows / chains_of(lengths, fit))
    answer = lengths.longest_answer or lengths.answer
    prompt = lengths.longest_prompt or lengths.prompt
    chains = answer + (prompt if fit.prompt_rows else 0)
    steps = max(fit.steps_in(epoch) for epoch in range(fit.epochs))
    rows = sequences * (prompt + answer)
    kept = kept_bytes(config, rows, sequences * chains, prompt + answer, steps, wide)
    return round(weights + target + kept + _LOGIT * fit.rows * config.draft_vocab_size)


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
