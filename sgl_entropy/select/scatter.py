"""LiDAR of many texts: sums over them, [d, d], where products of vectors would be far wider.

The same value as ``lidar.lidar_of`` (tests compare both with ``reference.py``): texts are read a
few at a time, so that nothing grows with their number. (Ours.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_entropy.select.lidar import DELTA, spectral_entropy

# Pooled vectors that are read at once.
_ROWS = 4096


def prefers_sums(pooled: Tensor) -> bool:
    """Whether the sums of ``pooled``, [n, q, d], are the smaller form by far: [d, d] against
    products that are [nq, nq]. Close to each other, products cost less."""
    n, q, d = pooled.shape
    return n * q > 4 * d


def lidar_by_sums(
    pooled: Tensor,
    counts: Tensor | None = None,
    delta: float = DELTA,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> float:
    """LiDAR of the texts, each taken as often as ``counts`` says; see ``lidar.lidar_of``.

    Args:
        pooled: [n, q, d], x_ij; may be mapped from a file.
        counts: int64 [n]; None = each once.
        device: where sums are made; ``pooled`` and ``counts`` lie on the CPU.
    """
    n, q, d = pooled.shape
    if counts is None:
        counts = torch.ones(n, dtype=torch.long)
    taken = counts.nonzero()[:, 0]
    weights = (counts[taken].to(dtype) / counts.sum()).to(device)
    few = max(1, _ROWS // q)
    # Any point near the mean will do: little is left to cancel then.
    middle = pooled[taken[:few]].to(device, dtype).mean((0, 1))
    within, between = torch.zeros((2, d, d), dtype=dtype, device=device)
    mean = torch.zeros(d, dtype=dtype, device=device)
    for part, weight in zip(torch.split(taken, few), torch.split(weights, few), strict=True):
        vectors = pooled[part].to(device, dtype) - middle
        means = vectors.mean(1)
        residuals = (vectors - means[:, None]).flatten(0, 1)
        within.addmm_(residuals.T * (weight / q).repeat_interleave(q), residuals)
        between.addmm_(means.T * weight, means)
        mean += weight @ means
    between -= torch.outer(mean, mean)
    factor = torch.linalg.cholesky(within + delta * torch.eye(d, dtype=dtype, device=device))
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    similar = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return spectral_entropy(torch.linalg.eigvalsh((similar + similar.T) / 2).double())
