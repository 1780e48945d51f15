"""Shannon entropy of next-token distributions: the quantity that the whole project turns on."""

from __future__ import annotations

import torch
from torch import Tensor


def shannon_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, at temperature 1.

    H = log Z - sum_v p_v z_v with z shifted by its maximum, so that neither huge nor -inf logits
    (tokens that are ruled out: they contribute 0) give inf or NaN.

    Args:
        logits: [..., vocab], any float dtype; computed in float32 at least.

    Returns:
        [...], float32 (float64 for float64 logits), in [0, ln vocab]. NaN where a row holds NaN
        or nothing but -inf: there is no distribution.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = wide - wide.amax(-1, keepdim=True)
    weight = shifted.exp()
    total = weight.sum(-1)
    # 0 * -inf: a token of no probability has no share in the entropy.
    share = torch.where(weight > 0, weight * shifted, torch.zeros_like(weight)).sum(-1)
    entropy = total.log() - share / total
    # Rounding may end a hair below zero; NaN stays NaN.
    return torch.where(entropy < 0, torch.zeros_like(entropy), entropy)
