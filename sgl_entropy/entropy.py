"""Shannon entropy of next-token distributions: the quantity that the whole project turns on."""

from __future__ import annotations

import torch
from torch import Tensor

# Logits at a time on a CPU: what lies between stays in its cache (4 to 8 times the speed).
_PIECE = 1 << 17
# exp of this is 0 in every float dtype, and 0 times it is no NaN, unlike 0 times -inf.
_NOTHING = -1000.0


def shannon_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, at temperature 1.

    H = log Z - sum_v p_v z_v with z shifted by its maximum, so that neither huge nor -inf logits
    (tokens that are ruled out: they contribute 0) give inf or NaN.

    Args:
        logits: [..., vocab], any float dtype; computed in float32 at least.

    Returns:
        [...], float32 (float64 for float64 logits), in [0, ln vocab]. NaN where a row holds NaN,
        +inf, or nothing but -inf: there is no distribution.
    """
    if logits.device.type == "cpu" and logits.numel() > _PIECE and not logits.requires_grad:
        vocab = logits.shape[-1]
        rows = torch.split(logits.reshape(-1, vocab), max(1, _PIECE // vocab))
        return torch.cat([_entropy(piece) for piece in rows]).view(logits.shape[:-1])
    return _entropy(logits)


def _entropy(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = (wide - wide.amax(-1, keepdim=True)).clamp_min(_NOTHING)
    weight = shifted.exp()
    total = weight.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(weight, shifted) / total
    # Rounding may end a hair below zero; NaN stays NaN.
    return torch.where(entropy < 0, torch.zeros_like(entropy), entropy)
