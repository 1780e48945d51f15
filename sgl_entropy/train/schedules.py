"""EDTrain's two schedules: which tokens an epoch leaves out, and how many draft steps it unrolls.

EDSD paper, section 3.2, equations 5 and 6. Both are pure functions of the epoch, so that a
resumed run follows them exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = ("floor", "ceil")


def masked_percent(epoch: int, epochs: int, gamma: float) -> float:
    """Mask-p: percent of a sample's loss positions that epoch ``epoch`` (from 0) leaves out.

    p_t = max(0, T - t - 1) * gamma (equation 5); the last epoch sees everything.
    """
    return max(0, epochs - epoch - 1) * gamma


def unrolled_steps(epoch: int, epochs: int, most: int, rounding: str = "floor") -> int:
    """Step-n: draft steps of epoch ``epoch`` (from 0), rising from 1 to ``most``.

    n_t = floor(1 + (S_max - 1) * t / (T - 1)) (equation 6); the authors' code rounds up. A
    single epoch has no rise and gets ``most`` (ours).
    """
    if epochs < 2:
        return most
    risen = (most - 1) * epoch
    # Integers throughout: a float quotient a hair below a whole number would lose a step.
    return 1 + (risen // (epochs - 1) if rounding == "floor" else -(-risen // (epochs - 1)))


def learned_rows(entropy: Tensor, percent: float) -> Tensor:
    """Which loss positions of one sample stay when its most uncertain ones are left out.

    Args:
        entropy: [rows], the target's entropy at each loss position, nats.
        percent: share to leave out, rounded down to whole positions (ours); of equal entropies
            the later position is left out first (ours), so that the choice is unique.

    Returns:
        bool [rows].
    """
    kept = torch.ones(len(entropy), dtype=torch.bool)
    out = int(len(entropy) * percent / 100)
    if out:
        order = torch.argsort(entropy, stable=True)
        kept[order[len(entropy) - out :]] = False
    return kept


def learned_columns(entropy: Tensor, rows: Tensor, most: int, percent: float) -> Tensor:
    """``learned_rows`` of several samples at once, on any device.

    Args:
        entropy: [all rows], sample by sample.
        rows: int64 [samples], how many each has; ``most`` is the largest of them.

    Returns:
        bool [all rows].
    """
    column = torch.arange(most, device=entropy.device)
    real = column < rows[:, None]
    padded = torch.full(real.shape, float("inf"), device=entropy.device)
    padded[real] = entropy.float()
    order = torch.argsort(padded, dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, column.expand_as(order))
    out = (rows.double() * percent / 100).long()
    kept: Tensor = (rank < (rows - out)[:, None])[real]
    return kept
