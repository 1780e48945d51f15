"""Acceptance against uncertainty (EDSD paper, Figure 2), and intervals for pooled ratios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.verify.trace import CycleRecord


@dataclass(frozen=True)
class FirstDrafts:
    """The first draft of each of m draft-verify cycles, greedy.

    Attributes:
        target_entropy, draft_entropy: float32 [m], nats; the draft's is over its own vocabulary.
        accepted: bool [m], the draft is the target's token.
    """

    target_entropy: Tensor
    draft_entropy: Tensor
    accepted: Tensor

    def to(self, device: str) -> FirstDrafts:
        """The same there."""
        here = (self.target_entropy, self.draft_entropy, self.accepted)
        return FirstDrafts(*(part.to(device) for part in here))

    @staticmethod
    def of(cycles: Iterable[CycleRecord]) -> FirstDrafts:
        """Those of a server's traces. Cycles that verified no draft have none."""
        held = [cycle for cycle in cycles if cycle.verified]
        return FirstDrafts(
            torch.tensor([cycle.target_entropy[0] for cycle in held], dtype=torch.float32),
            torch.tensor([cycle.draft_entropy[0] for cycle in held], dtype=torch.float32),
            torch.tensor([cycle.accepted > 0 for cycle in held], dtype=torch.bool),
        )

    @staticmethod
    def joined(parts: Sequence[FirstDrafts]) -> FirstDrafts:
        """Those of several answers."""
        return FirstDrafts(
            torch.cat([part.target_entropy for part in parts]),
            torch.cat([part.draft_entropy for part in parts]),
            torch.cat([part.accepted for part in parts]),
        )


def by_decile(entropy: Tensor, accepted: Tensor, parts: int = 10) -> list[dict[str, Any]]:
    """Acceptance by equal-sized parts of the positions, from low entropy to high.

    Args:
        entropy: [m], nats; accepted: bool [m].

    Returns:
        One row a part: ``entropy`` [lowest, highest], ``positions``, ``acceptance``. Fewer rows
        where there are fewer positions than parts.
    """
    order = torch.argsort(entropy, stable=True)
    rows = []
    for part in torch.tensor_split(order, min(parts, len(order))) if len(order) else ():
        rows.append(
            {
                "entropy": [round(float(entropy[part[i]]), 4) for i in (0, -1)],
                "positions": len(part),
                "acceptance": round(float(accepted[part].float().mean()), 4),
            }
        )
    return rows


def heat_map(drafts: FirstDrafts, width: float = 0.5, cells: int = 14) -> dict[str, Any]:
    """Joint counts of target and draft entropy, and acceptance in each cell.

    Args:
        width: of a cell in nats; the last cell of each axis also holds everything above it.
        cells: a side.

    Returns:
        ``width``, ``positions`` [target cell][draft cell] and ``accepted`` of the same shape.
    """
    target, draft = (
        (value / width).long().clamp(0, cells - 1)
        for value in (drafts.target_entropy, drafts.draft_entropy)
    )
    cell = target * cells + draft
    total = torch.bincount(cell, minlength=cells * cells).view(cells, cells)
    taken = torch.bincount(cell[drafts.accepted], minlength=cells * cells).view(cells, cells)
    return {"width": width, "positions": total.tolist(), "accepted": taken.tolist()}


def ratio_interval(
    numerators: Sequence[int],
    denominators: Sequence[int],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of sum(numerators) / sum(denominators) over prompts.

    Prompts are resampled, not tokens: the tokens of one answer are far from independent.

    Raises:
        ValueError: nothing to count.
    """
    top = torch.tensor(numerators, dtype=torch.float64)
    bottom = torch.tensor(denominators, dtype=torch.float64)
    if not float(bottom.sum()) > 0:
        raise ValueError("no draft-verify cycle was counted: the answers are too short")
    chance = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(top), (resamples, len(top)), generator=chance)
    # A resample of prompts without a single cycle says nothing.
    held = bottom[drawn].sum(1)
    ratios = top[drawn].sum(1)[held > 0] / held[held > 0]
    low, high = torch.quantile(ratios, torch.tensor([0.5 - level / 2, 0.5 + level / 2]).double())
    return float(low), float(high)
