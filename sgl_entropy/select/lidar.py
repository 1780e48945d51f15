"""LiDAR: how many directions tell texts apart beyond noise on them (Thilak et al., 2024).

The eigenvalues of S_w^-1/2 S_b S_w^-1/2, [d, d], are those of M S_w^-1 M^T, [n, n], where row i
of M is the i-th text's centred mean over sqrt(n). With the within-residuals R over sqrt(nq),
Woodbury gives

    S_w^-1 = (R^T R + delta I)^-1 = (I - R^T (R R^T + delta I)^-1 R) / delta

so that only products of pooled vectors are needed: no matrix is larger than [nq, nq], whatever
the hidden size. ``reference.py`` has the plain [d, d] form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the identity added to the within-scatter [the metric's authors].
DELTA = 1e-4


@dataclass(frozen=True)
class Gram:
    """Inner products of one layer's pooled vectors, n texts of q views.

    Attributes:
        within: [nq, nq], of the residuals x_ij - mu_i, text by text.
        cross: [n, nq], of mu_i - mu with the residuals.
        between: [n, n], of mu_i - mu.
        views: q.
    """

    within: Tensor
    cross: Tensor
    between: Tensor
    views: int

    def to(self, dtype: torch.dtype) -> Gram:
        """The same in another dtype."""
        return Gram(self.within.to(dtype), self.cross.to(dtype), self.between.to(dtype), self.views)


def gram(pooled: Tensor) -> Gram:
    """Inner products, float64.

    Args:
        pooled: [n, q, d], x_ij.
    """
    wide = pooled.double()
    means = wide.mean(1)
    residuals = (wide - means[:, None]).flatten(0, 1)
    # A resample has another mean, but one near this: little is left to cancel in its products.
    centred = means - means.mean(0)
    return Gram(
        residuals @ residuals.T, centred @ residuals.T, centred @ centred.T, pooled.shape[1]
    )


def lidar_of(products: Gram, counts: Tensor | None = None, delta: float = DELTA) -> float:
    """LiDAR of the texts, each taken as often as ``counts`` says.

    Args:
        counts: int64 [n], a resample of the texts; None = each once. A text that is taken twice
            weighs twice in both scatters, exactly as if its views stood there twice.
        delta: added to the within-scatter's diagonal.

    Returns:
        Shannon entropy, nats, of the normalised positive eigenvalues; at most ln(n - 1) for n
        different texts. 0.0 where nothing tells the texts apart.
    """
    dtype, q = products.between.dtype, products.views
    if counts is None:
        counts = torch.ones(len(products.between), dtype=torch.long)
    device = products.between.device
    counts = counts.to(device)
    taken = counts.nonzero()[:, 0]
    rows = (taken[:, None] * q + torch.arange(q, device=device)).flatten()
    weights = counts[taken].to(dtype) / counts.sum()
    root, row_root = weights.sqrt(), (weights / q).sqrt().repeat_interleave(q)

    between = products.between[taken][:, taken]
    between = between - weights @ between
    between = between - (between @ weights)[:, None]
    cross = products.cross[taken][:, rows]
    cross = cross - weights @ cross
    between = root[:, None] * between * root
    cross = root[:, None] * cross * row_root
    within = row_root[:, None] * products.within[rows][:, rows] * row_root

    factor = torch.linalg.cholesky(
        within + delta * torch.eye(len(rows), dtype=dtype, device=device)
    )
    half = torch.linalg.solve_triangular(factor, cross.T, upper=False)
    similar = (between - half.T @ half) / delta
    values = torch.linalg.eigvalsh((similar + similar.T) / 2).double()
    return spectral_entropy(values)


def lidar(pooled: Tensor, delta: float = DELTA) -> float:
    """``lidar_of`` each of n texts once. ``pooled``: [n, q, d]."""
    return lidar_of(gram(pooled), delta=delta)


def spectral_entropy(values: Tensor) -> float:
    """Shannon entropy, nats, of the positive ones of ``values`` [k], normalised to sum 1."""
    positive = values[values > 0]
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return max(0.0, float(-torch.xlogy(shares, shares).sum()))
