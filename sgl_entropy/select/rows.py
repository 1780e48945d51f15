"""What both metrics are computed on: token rows, centred and scaled to unit length a text."""

from __future__ import annotations

import torch
from torch import Tensor


def token_mask(lengths: Tensor, longest: int) -> Tensor:
    """bool [batch, longest], True where a token is. ``lengths``: int64 [batch]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def unit_rows(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Drop padding, subtract the mean over a text's tokens, scale every row to unit L2 norm.

    The preprocessing of the metrics' authors, in float64. A row that equals the mean stays zero.

    Args:
        hidden: [batch, longest, d], right-padded; what padding holds does not matter.
        lengths: int64 [batch], tokens of each text, at least 1.

    Returns:
        float64 [batch, longest, d]; padding is zero.
    """
    there = token_mask(lengths, hidden.shape[1])[..., None]
    wide = hidden.double().masked_fill(~there, 0.0)
    mean = wide.sum(1, keepdim=True) / lengths[:, None, None]
    centred = (wide - mean).masked_fill(~there, 0.0)
    norms = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / torch.where(norms > 0, norms, torch.ones_like(norms))


def pooled_rows(rows: Tensor, lengths: Tensor) -> Tensor:
    """Mean over a text's tokens of ``unit_rows``: LiDAR's x_ij.

    The mean is taken after the scaling to unit length [ours; the sources name both steps, not
    their order]: before it, the mean of centred rows would be zero by construction. What is left
    weighs every token alike, however large the norm of a few.

    Args:
        rows: [batch, longest, d] with zero padding.
        lengths: int64 [batch].

    Returns:
        [batch, d].
    """
    return rows.sum(1) / lengths[:, None]
