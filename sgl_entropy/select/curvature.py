"""Curvature: how sharply the path through a text's tokens turns (paper 003, section 3.2).

After Hosseini and Fedorenko (2023), with the absolute cosine of the metric's authors: with the
signed one the embedding layer always wins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_entropy.select.rows import token_mask


def mean_turn(rows: Tensor, lengths: Tensor) -> Tensor:
    """Mean over k of arccos(|v_k+1 . v_k| / (|v_k+1| |v_k|)) with v_k = z_k - z_k-1, by text.

    A step of length zero turns by 0.

    Args:
        rows: [batch, longest, d], right-padded; of ``unit_rows`` in EDSelect.
        lengths: int64 [batch], tokens of each text, at least 3.

    Returns:
        float64 [batch], radians in [0, pi/2].

    Raises:
        ValueError: a text of fewer than three tokens has no turn.
    """
    if int(lengths.min()) < 3:
        raise ValueError(f"curvature needs at least 3 tokens a text, found {int(lengths.min())}")
    steps = rows[:, 1:].double() - rows[:, :-1].double()
    norms = torch.linalg.vector_norm(steps, dim=-1)
    products = (steps[:, 1:] * steps[:, :-1]).sum(-1).abs()
    scale = norms[:, 1:] * norms[:, :-1]
    # Where there is no step, cosine 1: an angle of 0.
    cosines = torch.where(scale > 0, products / scale, torch.ones_like(scale)).clamp(max=1.0)
    turns = lengths - 2
    angles = torch.arccos(cosines).masked_fill(~token_mask(turns, cosines.shape[1]), 0.0)
    return angles.sum(1) / turns
