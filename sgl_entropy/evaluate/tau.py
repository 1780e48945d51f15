"""tau over prompts, and its bootstrap. (Ours.)

Prompts are resampled, not tokens: the tokens of one answer are far from independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sgl_entropy.verify.resampling import interval, resampled_sums, seeded


class PromptCounts(NamedTuple):
    """The answer to one prompt: its group, and the tokens of so many draft-verify cycles."""

    group: str
    tokens: int
    cycles: int


def pooled_interval(
    counts: Sequence[PromptCounts], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the pooled tau, all tokens / all cycles.

    Raises:
        ValueError: no cycle was counted.
    """
    rows = torch.tensor([one[1:] for one in counts], dtype=torch.float64)
    if not float(rows[:, 1].sum()) > 0:
        raise ValueError("no draft-verify cycle was counted: the answers are too short")
    tokens, cycles = resampled_sums(rows, resamples, seeded(seed)).unbind(-1)
    # A resample of prompts without a single cycle says nothing.
    return interval(tokens[cycles > 0] / cycles[cycles > 0], level)


def group_means(
    sides: Sequence[Sequence[PromptCounts]], resamples: int = 4000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """tau as the mean of the groups' pooled taus, of several sides that answer the same prompts.

    A group without a cycle counts as 1: no draft helped.

    Args:
        sides: drafters, system prompts: each with the same prompts in the same order.

    Returns:
        float64 [sides], and of each resample of every group's prompts, the same for all sides,
        [resamples, sides].

    Raises:
        ValueError: the sides have other prompts.
    """
    groups = [one.group for one in sides[0]]
    if any([one.group for one in side] != groups for side in sides):
        raise ValueError("the two drafters were judged on other prompts")
    # [prompts, sides, (tokens, cycles)]
    counts = torch.tensor(
        [[one[1:] for one in side] for side in sides], dtype=torch.float64
    ).transpose(0, 1)
    chance = seeded(seed)
    whole, resampled = [], []
    for name in dict.fromkeys(groups):
        rows = counts[[i for i, group in enumerate(groups) if group == name]]
        whole.append(_tau(rows.sum(0)))
        resampled.append(_tau(resampled_sums(rows, resamples, chance)))
    return torch.stack(whole).mean(0), torch.stack(resampled).mean(0)


def _tau(sums: Tensor) -> Tensor:
    tokens, cycles = sums.unbind(-1)
    return torch.where(cycles > 0, tokens / cycles.clamp_min(1), torch.ones_like(tokens))
