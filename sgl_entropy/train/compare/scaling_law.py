"""Does more data pay? tau against training tokens, with a fitted law and what it foresees (ours).

The law is tau(N) = limit - size * N^-power, the usual form of learning curves: with the power
fixed, the other two follow from least squares, and the power is the best of a grid. Intervals
come from fitting every bootstrap draw of the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

POWERS = torch.linspace(0.05, 1.5, 59, dtype=torch.float64)
AHEAD = (2, 4)


def fit_law(tokens: Tensor, taus: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the law to each draw of a curve.

    Args:
        tokens: float64 [points], at least 3 that differ.
        taus: float64 [draws, points].

    Returns:
        limit, size, power: each [draws]; size is at least 0, so that the law never falls.
    """
    scaled = tokens / tokens.max()
    best = torch.full((len(taus),), torch.inf, dtype=torch.float64)
    limit, size, power = (torch.zeros(len(taus), dtype=torch.float64) for _ in range(3))
    for candidate in POWERS:
        x = scaled**-candidate
        slope = -((x - x.mean()) * taus).sum(1) / (x - x.mean()).pow(2).sum()
        slope = slope.clamp_min(0)
        level = taus.mean(1) + slope * x.mean()
        error = (level[:, None] - slope[:, None] * x - taus).pow(2).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        limit, size = torch.where(better, level, limit), torch.where(better, slope, size)
        power = torch.where(better, candidate, power)
    return limit, size * tokens.max() ** power, power


@dataclass(frozen=True)
class Foreseen:
    """tau at ``times`` the largest budget, which is ``tokens``."""

    times: int
    tokens: int
    tau: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Law:
    """tau(N) = limit - size * N^-power, and what it foresees."""

    limit: float
    size: float
    power: float
    ahead: list[Foreseen]


@dataclass(frozen=True)
class Curve:
    """A learning curve: ``points`` (tokens, tau); its law, unless there are fewer than three
    budgets; and a ``note`` where the points do not carry one."""

    points: list[tuple[int, float]]
    law: Law | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Flat, without what is not there."""
        law = {} if self.law is None else asdict(self.law)
        return {"points": self.points, **law, **({"note": self.note} if self.note else {})}


def foresee(tokens: Sequence[float], taus: Sequence[float], draws: Tensor) -> Curve:
    """A curve's law and its tau at multiples of the largest budget.

    Args:
        tokens, taus: of each point, tokens rising.
        draws: float64 [draws, points], bootstrap draws of ``taus``.
    """
    points = [(round(n), round(t, 4)) for n, t in zip(tokens, taus, strict=True)]
    if len(set(tokens)) < 3:
        return Curve(points, None, "a law needs at least three budgets")
    at = torch.tensor(tokens, dtype=torch.float64)
    fitted = torch.cat([torch.tensor([taus], dtype=torch.float64), draws])
    limit, size, power = fit_law(at, fitted)
    ahead = []
    for times in AHEAD:
        n = at.max() * times
        law_taus = limit - size * n**-power
        edges = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.quantile(law_taus[1:], edges).tolist()
        interval = round(low, 4), round(high, 4)
        ahead.append(Foreseen(times, round(float(n)), round(float(law_taus[0]), 4), interval))
    note = ""
    if float(size[0]) == 0.0:
        note = "tau does not rise with tokens here"
    elif float(power[0]) in (float(POWERS[0]), float(POWERS[-1])):
        note = "the power is at the edge of its grid: the points do not tell it"
    law = Law(round(float(limit[0]), 4), float(size[0]), round(float(power[0]), 4), ahead)
    return Curve(points, law, note)


def curve_table(curves: Mapping[str, Curve]) -> str:
    """Each curve for people: its points, then what the law foresees."""
    lines = []
    for name, curve in curves.items():
        points = ", ".join(f"{n:,}: {tau:.3f}" for n, tau in curve.points)
        lines.append(f"{name}: tau at answer tokens {points}")
        for one in curve.law.ahead if curve.law else ():
            low, high = one.interval
            lines.append(
                f"  {one.times} times as many ({one.tokens:,}): {one.tau:.3f}, 95 % "
                f"interval {low:.3f} to {high:.3f}, if the law holds"
            )
        if curve.note:
            lines.append(f"  {curve.note}")
    return "\n".join(lines)
