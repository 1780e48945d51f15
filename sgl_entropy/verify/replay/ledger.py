"""What a trace's cycles cost and emitted, as recorded and under another policy.

Exact: what was recorded, and what each recorded cycle would have drafted, verified and emitted
under the policy if it had begun at the same token. An estimate: speeds. Under another policy later
cycles begin elsewhere; the estimate takes them to be like the recorded ones. If C cycles emit E
tokens as recorded and E' under the policy, then E tokens take C E / E' cycles of the mean cost: a
token that a cycle loses costs the cycles that make it at the policy's own E' / C tokens a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.verify.positions import column
from sgl_entropy.verify.resampling import interval, resampled_sums, seeded
from sgl_entropy.verify.trace import CycleRecord, TraceHeader


@dataclass(frozen=True)
class ReplayCosts:
    """Times in units of a plain decode step of the same batch.

    Attributes:
        draft: of a draft step.
        row: of each drafted token in a verification.
        cycle: of a verification without drafted tokens, and all else that a cycle costs.
    """

    draft: float
    row: float = 0.0
    cycle: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name}-cost must be a number from 0, found {value}")
        if self.cycle == 0:
            raise ValueError("--cycle-cost must be above 0")


@dataclass(frozen=True)
class CycleCounts:
    """Sums over a request's cycles: tokens drafted, verified and emitted."""

    drafted: int
    verified: int
    emitted: int

    @classmethod
    def recorded(cls, cycles: Sequence[CycleRecord], header: TraceHeader) -> CycleCounts:
        """As recorded; without a draft stop every chain was drafted to its full length."""
        verified = int(column(cycles, "verified").sum())
        whole = header.draft_stop is None
        drafted = len(cycles) * header.draft_tokens if whole else verified
        return cls(drafted, verified, int(column(cycles, "emitted").sum()))


@dataclass(frozen=True)
class BothSides:
    """A figure as recorded, and under the policy in the same cycles."""

    recorded: float
    under: float


@dataclass(frozen=True)
class Speeds:
    """Estimates.

    Attributes:
        speed_ratio: the policy's speed over the recorded one.
        interval: 95 %, from a bootstrap of the requests, both sides together; None for one request.
        speed_up: of each side over plain decoding.
    """

    speed_ratio: float
    interval: tuple[float, float] | None
    speed_up: BothSides


@dataclass(frozen=True)
class LedgerFigures:
    """Sums over the trace. ``speeds``: with costs alone."""

    requests: int
    cycles: int
    drafted: BothSides
    verified: BothSides
    emitted: BothSides
    tokens_per_cycle: BothSides
    speeds: Speeds | None = field(default=None, metadata=FLAT)


class Ledger:
    """Counts of each request, as recorded and under a policy; a few numbers a request."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []

    def add(self, cycles: int, recorded: CycleCounts, under: CycleCounts) -> None:
        """Those of one request."""
        self._rows.append((cycles, *astuple(recorded), *astuple(under)))

    def figures(self, costs: ReplayCosts | None) -> LedgerFigures:
        """Raises ValueError without a cycle."""
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 7)
        total = rows.sum(0)
        if not total[0] > 0:
            raise ValueError("the trace holds no verify cycle")
        cycles, *sums = map(int, total)
        drafted, verified, emitted = map(BothSides, sums[:3], sums[3:])
        a_cycle = BothSides(round(emitted.recorded / cycles, 4), round(emitted.under / cycles, 4))
        speeds = None if costs is None else _speeds(rows, costs)
        return LedgerFigures(len(rows), cycles, drafted, verified, emitted, a_cycle, speeds)


def _speeds(rows: Tensor, costs: ReplayCosts) -> Speeds:
    total = rows.sum(0)
    ends = None
    if len(rows) > 1:
        sums = resampled_sums(rows, 2000, seeded(0))
        # A resample without a single cycle says nothing.
        low, high = interval(_ratio(sums[sums[:, 0] > 0], costs))
        ends = (round(low, 4), round(high, 4))
    recorded, under = (round(float(_speed(total, first, costs)), 4) for first in (1, 4))
    return Speeds(round(float(_ratio(total, costs)), 4), ends, BothSides(recorded, under))


def _speed(sums: Tensor, first: int, costs: ReplayCosts) -> Tensor:
    """[...] of [..., 7]: tokens a plain decode step, from the counts at column ``first``."""
    drafted, verified, emitted = sums[..., first : first + 3].unbind(-1)
    return emitted / (costs.cycle * sums[..., 0] + costs.draft * drafted + costs.row * verified)


def _ratio(sums: Tensor, costs: ReplayCosts) -> Tensor:
    return _speed(sums, 4, costs) / _speed(sums, 1, costs)
