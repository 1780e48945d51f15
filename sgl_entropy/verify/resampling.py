"""The bootstrap: prompts, texts or requests drawn again with replacement, seeded."""

from __future__ import annotations

import torch
from torch import Tensor

# Resamples whose counts are held at once.
_BLOCK = 256


def seeded(seed: int) -> torch.Generator:
    """The generator that resamples are drawn by."""
    return torch.Generator().manual_seed(seed)


def resample_counts(count: int, resamples: int, chance: torch.Generator) -> Tensor:
    """int64 [resamples, count]: how often a resample takes each of ``count`` rows."""
    drawn = torch.randint(count, (resamples, count), generator=chance)
    counts = torch.zeros((resamples, count), dtype=torch.long)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn))


def resampled_sums(rows: Tensor, resamples: int, chance: torch.Generator) -> Tensor:
    """Sums over each resample of the rows: [n, ...] -> float64 [resamples, ...]."""
    flat = rows.double().flatten(1)
    sizes = [min(_BLOCK, resamples - done) for done in range(0, resamples, _BLOCK)]
    sums = [resample_counts(len(rows), size, chance).double() @ flat for size in sizes]
    return torch.cat(sums).reshape(resamples, *rows.shape[1:])


def interval(values: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The quantiles of ``values`` [resamples] between which a share ``level`` of them lies."""
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    low, high = torch.quantile(values.double(), ends).tolist()
    return low, high
