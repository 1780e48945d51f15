"""Acceptance against uncertainty (EDSD paper, Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
        return FirstDrafts(*(part.to(device) for part in vars(self).values()))

    @staticmethod
    def of(cycles: Iterable[CycleRecord]) -> FirstDrafts:
        """Those of a server's traces. Cycles that verified no draft have none."""
        verified = [cycle for cycle in cycles if cycle.verified]
        return FirstDrafts(
            torch.tensor([cycle.target_entropy[0] for cycle in verified], dtype=torch.float32),
            torch.tensor([cycle.draft_entropy[0] for cycle in verified], dtype=torch.float32),
            torch.tensor([cycle.accepted > 0 for cycle in verified], dtype=torch.bool),
        )

    @staticmethod
    def joined(parts: Sequence[FirstDrafts]) -> FirstDrafts:
        """Those of several answers."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return FirstDrafts(*map(torch.cat, columns))


@dataclass(frozen=True)
class EntropyPart:
    """Positions with a target entropy between two values, nats, and their acceptance."""

    entropy: tuple[float, float]
    positions: int
    acceptance: float


@dataclass(frozen=True)
class HeatMap:
    """Joint counts of target and draft entropy.

    Attributes:
        width: of a cell in nats; the last cell of each axis also holds everything above it.
        positions: [target cell][draft cell]; accepted: those that were accepted.
    """

    width: float
    positions: tuple[tuple[int, ...], ...]
    accepted: tuple[tuple[int, ...], ...]


def by_decile(entropy: Tensor, accepted: Tensor, parts: int = 10) -> tuple[EntropyPart, ...]:
    """Acceptance by equal-sized parts of the positions, from low entropy to high.

    Args:
        entropy: [m], nats; accepted: bool [m].
        parts: fewer are returned where there are fewer positions.
    """
    if not len(entropy):
        return ()
    order = torch.argsort(entropy, stable=True)
    rows = []
    for part in torch.tensor_split(order, min(parts, len(order))):
        low, high = (round(float(entropy[part[end]]), 4) for end in (0, -1))
        share = round(float(accepted[part].float().mean()), 4)
        rows.append(EntropyPart((low, high), len(part), share))
    return tuple(rows)


def heat_map(drafts: FirstDrafts, width: float = 0.5, cells: int = 14) -> HeatMap:
    """``drafts`` in ``cells`` x ``cells`` cells of ``width`` nats."""
    target, draft = (
        (value / width).long().clamp(0, cells - 1)
        for value in (drafts.target_entropy, drafts.draft_entropy)
    )
    cell = target * cells + draft
    counts = (
        torch.bincount(which, minlength=cells * cells).view(cells, cells).tolist()
        for which in (cell, cell[drafts.accepted])
    )
    positions, accepted = (tuple(map(tuple, rows)) for rows in counts)
    return HeatMap(width, positions, accepted)
