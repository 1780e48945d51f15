"""What a trace's cycles cost and emitted, as recorded and under another policy.

Exact: what was recorded, and what each recorded cycle would have drafted, verified and emitted had
it begun at the same token. An estimate: the rest. Under another policy later cycles begin
elsewhere; the estimate takes them to be like the recorded ones, so that with E tokens emitted as
recorded and E' by the same C cycles under the policy, E tokens take C E / E' cycles, each of the
mean cost. A token that a cycle loses is thus paid for with the cycles that it takes to make it at
the policy's own E' / C tokens a cycle.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Costs:
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
        for name, value in (("draft", self.draft), ("row", self.row), ("cycle", self.cycle)):
            if not 0 <= value < math.inf:
                raise ValueError(f"--{name}-cost must be a number from 0, found {value}")
        if self.cycle == 0:
            raise ValueError("--cycle-cost must be above 0")


@dataclass(frozen=True)
class CycleCounts:
    """Sums over cycles: tokens drafted, verified and emitted."""

    drafted: float = 0
    verified: float = 0
    emitted: float = 0


class Ledger:
    """Counts of each request, as recorded and under a policy; a few numbers a request."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, ...]] = []

    def add(self, cycles: int, recorded: CycleCounts, under: CycleCounts) -> None:
        """One request's."""
        self._rows.append((cycles, *astuple(recorded), *astuple(under)))

    def figures(self, costs: Costs | None) -> dict[str, Any]:
        """Sums, tokens a cycle, and with ``costs`` the ratio of speeds.

        Returns:
            ``cycles``, and of ``drafted``, ``verified``, ``emitted``, ``tokens_per_cycle`` the
            values ``recorded`` and ``under`` the policy in these same cycles. With costs
            ``speed_ratio``, the policy's over the recorded, with its ``interval`` (95 %; requests
            are resampled, both sides together; None for one request), and each side's
            ``speed_up`` over plain decoding.

        Raises:
            ValueError: no cycle.
        """
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 7)
        total = rows.sum(0)
        if not total[0] > 0:
            raise ValueError("the trace holds no verify cycle")
        cycles, before, after = float(total[0]), total[1:4].tolist(), total[4:7].tolist()
        out: dict[str, Any] = {"requests": len(rows), "cycles": round(cycles)}
        for at, name in enumerate(("drafted", "verified", "emitted")):
            out[name] = {"recorded": _short(before[at]), "under": _short(after[at])}
        out["tokens_per_cycle"] = {
            "recorded": round(before[2] / cycles, 4),
            "under": round(after[2] / cycles, 4),
        }
        if costs is not None:
            out["speed_ratio"] = round(float(_ratio(total, costs)), 4)
            out["interval"] = _interval(rows, costs)
            out["speed_up"] = {
                "recorded": round(float(total[3] / _time(total, 1, costs)), 4),
                "under": round(float(total[6] / _time(total, 4, costs)), 4),
            }
        return out


def _time(sums: Tensor, first: int, costs: Costs) -> Tensor:
    """[...] of [..., 7]: what the cycles took whose counts begin at column ``first``."""
    return (
        costs.cycle * sums[..., 0]
        + costs.draft * sums[..., first]
        + costs.row * sums[..., first + 1]
    )


def _ratio(sums: Tensor, costs: Costs) -> Tensor:
    before, after = (sums[..., first + 2] / _time(sums, first, costs) for first in (1, 4))
    return after / before


def _interval(
    rows: Tensor, costs: Costs, resamples: int = 2000, seed: int = 0
) -> list[float] | None:
    count = len(rows)
    if count < 2:
        return None
    chance = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(resamples):
        picked = torch.randint(count, (count,), generator=chance)
        drawn.append(torch.bincount(picked, minlength=count).double() @ rows)
    sums = torch.stack(drawn)
    # A resample without a single cycle says nothing.
    ratios = _ratio(sums[sums[:, 0] > 0], costs)
    ends = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [round(float(end), 4) for end in ends]


def _short(value: float) -> float:
    return int(value) if value == int(value) else round(value, 2)
