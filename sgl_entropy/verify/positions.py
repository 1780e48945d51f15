"""Verify cycles as tensors, and where EASD's rule fires among their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord


def table(
    cycles: Sequence[CycleRecord], name: str, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[cycles, width] of one list of the cycles, NaN after its end.

    float32 as in the engine, so that comparisons with thresholds come out as they did there.
    """
    rows = [getattr(cycle, name) for cycle in cycles]
    filled = [[*row, *[math.nan] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype).reshape(len(rows), width)


def column(cycles: Sequence[CycleRecord], name: str) -> Tensor:
    """int64 [cycles] of one count; None is -1."""
    values = [getattr(cycle, name) for cycle in cycles]
    return torch.tensor([-1 if value is None else value for value in values], dtype=torch.long)


@dataclass(frozen=True)
class Positions:
    """What EASD's rule looks at: entropies in nats and overlaps in shares of N, of one shape."""

    target_entropy: Tensor
    draft_entropy: Tensor
    overlap: Tensor

    @classmethod
    def of(
        cls,
        cycles: Sequence[CycleRecord],
        width: int,
        top_n: int,
        dtype: torch.dtype = torch.float32,
    ) -> Positions:
        """[cycles, width] of the drafted positions; NaN after what was verified."""
        target = table(cycles, "target_entropy", width + 1, dtype)[:, :width]
        # A share of whole tokens, however it was rounded.
        shares = (table(cycles, "overlap", width, dtype) * top_n).round() / top_n
        return cls(target, table(cycles, "draft_entropy", width, dtype), shares)

    def at(self, mask: Tensor) -> Positions:
        """Those where ``mask`` is true, flat."""
        return Positions(self.target_entropy[mask], self.draft_entropy[mask], self.overlap[mask])

    def unsure(self, rule: EasdRule, more: float = 0.0) -> Tensor:
        """bool, where both entropies are above the rule's thresholds by ``more`` nats."""
        target, draft = (
            torch.tensor(nats, dtype=self.overlap.dtype) + more
            for nats in (rule.target_entropy, rule.draft_entropy)
        )
        return (self.target_entropy > target) & (self.draft_entropy > draft)

    def fires(self, rule: EasdRule, more: float = 0.0) -> Tensor:
        """bool, where the rule's three conditions hold."""
        least = torch.tensor(rule.overlap, dtype=self.overlap.dtype)
        return self.unsure(rule, more) & (self.overlap >= least)
