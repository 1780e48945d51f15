"""Shannon entropy of next-token distributions: the quantity that the whole project is about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Logits at a time on a CPU: intermediate results then stay in its cache (4 to 8 times as fast).
_PIECE = 1 << 17
# On a CPU, rows of at least this length are computed one by one: a call costs little beside them.
_LONG = 24_000
# exp of this is 0 in every float dtype, and 0 times it is no NaN, unlike 0 times -inf.
_NOTHING = -1000.0
_LN_2 = math.log(2.0)


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
    vocab = logits.shape[-1]
    if _one_by_one(logits):
        return _of_long(logits.reshape(-1, vocab).unbind(0), vocab).view(logits.shape[:-1])
    if logits.device.type == "cpu" and logits.numel() > _PIECE and not logits.requires_grad:
        rows = torch.split(logits.reshape(-1, vocab), max(1, _PIECE // vocab))
        return torch.cat([_entropy(piece) for piece in rows]).view(logits.shape[:-1])
    return _entropy(logits)


def entropy_of_rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """``shannon_entropy(logits[rows])`` of logits [n, vocab]; long rows on a CPU are not copied."""
    if _one_by_one(logits):
        return _of_long((logits.select(0, row) for row in rows), logits.shape[-1])
    return shannon_entropy(logits[list(rows)])


def _one_by_one(logits: Tensor) -> bool:
    return (
        logits.device.type == "cpu"
        and logits.shape[-1] >= _LONG
        and logits.dtype != torch.float64
        and not logits.requires_grad
    )


def _of_long(rows: Iterable[Tensor], vocab: int) -> Tensor:
    """Entropies of rows [vocab] on a CPU: float32 [rows]. ``_entropy`` is the plain way.

    With two buffers for all rows, and powers of two, which cost half of ``exp`` there: with
    y = (z - max z) / ln 2, H = ln 2 (log2 Z - sum_v p_v y_v), Z = sum_v 2^y_v. What rounding adds
    to the shift is the same for all tokens of a row, and so changes nothing.
    """
    entropies: list[float] = []
    shifted, weight = torch.empty(2, vocab, dtype=torch.float32, device="cpu").unbind(0)
    for row in rows:
        wide = row.float()
        # One pass: shift and change of the base.
        torch.add(wide.amax().mul(-1 / _LN_2), wide, alpha=1 / _LN_2, out=shifted)
        torch.exp2(shifted, out=weight)
        total = float(weight.sum())
        # A dot product would save a pass, and lose two digits over 1.5e5 terms.
        inner = float(weight.mul_(shifted).sum())
        entropy = _LN_2 * (math.log2(total) - inner / total) if total > 0 else math.nan
        # Not finite: tokens that are ruled out, logits beyond any model's, or no distribution.
        entropies.append(max(0.0, entropy) if math.isfinite(entropy) else float(_entropy(wide)))
    return torch.tensor(entropies, dtype=torch.float32, device="cpu")


def _entropy(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    shifted = (wide - wide.amax(-1, keepdim=True)).clamp_min(_NOTHING)
    weight = shifted.exp()
    total = weight.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(weight, shifted) / total
    # Rounding may end a hair below zero; NaN stays NaN.
    return torch.where(entropy < 0, torch.zeros_like(entropy), entropy)
