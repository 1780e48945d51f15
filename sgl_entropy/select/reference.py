"""LiDAR as it is defined, with [d, d] matrices: what tests hold ``lidar.py`` against."""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_entropy.select.lidar import DELTA, spectral_entropy


def plain_lidar(pooled: Tensor, delta: float = DELTA) -> float:
    """LiDAR, nats, of S_w^-1/2 S_b S_w^-1/2 itself (Thilak et al., 2024).

    Args:
        pooled: [n, q, d], x_ij.
    """
    wide = pooled.double()
    n, q, d = wide.shape
    means = wide.mean(1)
    centred = means - means.mean(0)
    residuals = (wide - means[:, None]).flatten(0, 1)
    between = centred.T @ centred / n
    within = residuals.T @ residuals / (n * q) + delta * torch.eye(d, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return spectral_entropy(torch.linalg.eigvalsh(root @ between @ root))
