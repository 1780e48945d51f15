"""How sure a profile is: texts drawn again with replacement, seeded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sgl_entropy.select.lidar import gram, lidar_of
from sgl_entropy.select.scatter import lidar_by_sums, prefers_sums

# Quantiles of the resamples, from and to.
INTERVAL = (0.05, 0.95)


def curvature_profiles(by_text: Tensor, counts: Tensor) -> Tensor:
    """[hidden states, n] by text -> float64 [resamples, hidden states]."""
    return counts.double() @ by_text.double().T / counts.sum(1, keepdim=True)


def lidar_profiles(
    pooled: Tensor,
    counts: Tensor,
    told: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """LiDAR of every hidden state, and of every resample. Memory holds one layer's inner products
    at a time, or one layer's sums where texts are many.

    The resamples run in float32, three times as fast: for rows of at most unit length its error
    is far below what resampling changes. The profile itself is float64.

    Args:
        pooled: [hidden states, n, q, d].
        counts: int64 [resamples, n].
        told: called with the number of finished hidden states, and of all.
        device: where they are computed; ``pooled`` and ``counts`` lie on the CPU.

    Returns:
        float64 [hidden states] and [resamples, hidden states].
    """
    profile, resampled = [], []
    for number, vectors in enumerate(pooled, 1):
        if prefers_sums(vectors):
            profile.append(lidar_by_sums(vectors, device=device))
            narrow = partial(lidar_by_sums, vectors, dtype=torch.float32, device=device)
            resampled.append([narrow(row) for row in counts])
        else:
            products = gram(vectors.to(device))
            profile.append(lidar_of(products))
            narrow = partial(lidar_of, products.to(torch.float32))
            resampled.append([narrow(row) for row in counts])
        if told is not None:
            told(number, len(pooled))
    return (
        torch.tensor(profile, dtype=torch.float64),
        torch.tensor(resampled, dtype=torch.float64).T.reshape(len(counts), len(pooled)),
    )


def interval(profile: Tensor, resampled: Tensor) -> list[tuple[float, float]]:
    """``INTERVAL`` of each hidden state: the spread of the resamples, moved onto the profile.

    A resample holds only about 63 % different texts, and LiDAR grows with their number, so every
    resample lies below the profile by much the same amount. That shift does not tell how sure the
    profile is; hence the resamples' mean is moved onto it [ours].

    Args:
        profile: float64 [hidden states]; resampled: float64 [resamples, hidden states].
    """
    spread = resampled - resampled.mean(0)
    ends = torch.quantile(spread, torch.tensor(INTERVAL, dtype=spread.dtype), dim=0)
    low, high = (profile + ends).tolist()
    return list(zip(low, high, strict=True))
