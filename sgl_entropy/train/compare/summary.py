"""From judged fits to figures: mean tau of each recipe, with intervals on every difference.

tau of a recipe is the mean over the groups of prompts (the benchmarks) of tokens / cycles, pooled
within a group over prompts and seeds. Intervals come from a bootstrap of both levels: the prompts
of each group, drawn once for all recipes (every recipe answers the same ones, so that a hard prompt
weighs on all alike), and each recipe's seeds, drawn for itself. (Ours.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.train.compare.records import JudgedFit
from sgl_entropy.train.compare.scaling_law import Curve, foresee
from sgl_entropy.verify.resampling import interval, resample_counts, seeded

Interval = tuple[float, float]


@dataclass(frozen=True)
class Against:
    """A recipe over the baseline.

    Attributes:
        ratio: of tau, with its interval; ``differs``: the interval excludes 1.
        seconds_ratio, flops_ratio, rows_ratio: of costs; rows through the drafter's layer.
    """

    ratio: float
    ratio_interval: Interval
    differs: bool
    seconds_ratio: float
    flops_ratio: float
    rows_ratio: float


@dataclass(frozen=True)
class RecipeFigures:
    """One recipe, all its seeds.

    Attributes:
        by_position: acceptance of each draft, given that all before it were accepted, pooled; None
            if a record does not hold it.
        seconds: of the optimizer steps; like ``flops`` and rows a mean over seeds.
        layer_rows, head_rows: that pass the drafter's layer and its head.
        against: None of the baseline.
    """

    tau: float
    interval: Interval
    tau_by_group: dict[str, float]
    tau_by_seed: list[float]
    by_position: list[float] | None
    seconds: float
    seconds_by_seed: list[float]
    flops: float
    layer_rows: int
    head_rows: int
    against: Against | None = None

    def to_json(self) -> dict[str, Any]:
        """Flat."""
        flat = asdict(self)
        return flat | (flat.pop("against") or {})


@dataclass(frozen=True)
class ComparisonSummary:
    """Figures of each recipe by name, and of the learning curves that recipes are points of."""

    baseline: str
    groups: list[str]
    arms: dict[str, RecipeFigures]
    curves: dict[str, Curve]

    def to_json(self) -> dict[str, Any]:
        """As a comparison's report holds it."""
        return {
            "baseline": self.baseline,
            "groups": self.groups,
            "arms": {name: one.to_json() for name, one in self.arms.items()},
            "curves": {name: one.to_json() for name, one in self.curves.items()},
        }


@dataclass(frozen=True)
class _Taus:
    """A recipe's counts and its bootstrap.

    Attributes:
        counts: float64 [seeds, prompts, (tokens, cycles)].
        draws: tau of each resample, [resamples].
    """

    counts: Tensor
    draws: Tensor


def summarise(
    rows: Sequence[JudgedFit], baseline: str, resamples: int = 4000, seed: int = 0
) -> ComparisonSummary:
    """Figures of each recipe, and of each against ``baseline``.

    Raises:
        ValueError: recipes that were judged on other prompts than the first.
    """
    _refuse_other_prompts(rows)
    of = {name: [row for row in rows if row.arm == name] for name in {row.arm: 0 for row in rows}}
    place: dict[str, list[int]] = {}
    for number, (group, _, _) in enumerate(rows[0].prompts):
        place.setdefault(group, []).append(number)
    groups = {group: torch.tensor(numbers) for group, numbers in place.items()}
    taus = _bootstrap(of, list(groups.values()), resamples, seed)
    arms = {name: _figures(of[name], taus[name], groups) for name in of}
    for name, figures in arms.items():
        if name != baseline:
            interval = _interval(taus[name].draws / taus[baseline].draws)
            against = _against(figures, arms[baseline], interval)
            arms[name] = replace(figures, against=against)
    return ComparisonSummary(baseline, list(groups), arms, _curves(of, arms, taus))


def _refuse_other_prompts(rows: Sequence[JudgedFit]) -> None:
    groups = [group for group, _, _ in rows[0].prompts]
    for row in rows:
        if [group for group, _, _ in row.prompts] != groups:
            raise ValueError(f"{row.arm}, seed {row.seed}: judged on other prompts")


def _bootstrap(
    of: Mapping[str, Sequence[JudgedFit]], groups: Sequence[Tensor], resamples: int, seed: int
) -> dict[str, _Taus]:
    """
    Args:
        groups: the places of each group's prompts among all.
    """
    chance = seeded(seed)
    prompts = [g[torch.randint(len(g), (resamples, len(g)), generator=chance)] for g in groups]
    out = {}
    for name, rows in of.items():
        counts = torch.tensor([[p[1:] for p in row.prompts] for row in rows], dtype=torch.float64)
        weight = resample_counts(len(counts), resamples, chance).double()
        out[name] = _Taus(counts, _resampled(counts, weight, prompts))
    return out


def _resampled(counts: Tensor, weight: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """tau of each resample: [resamples].

    Args:
        counts: [seeds, prompts, 2]; weight: [resamples, seeds], how often a seed was drawn.
        prompts: of each group, [resamples, its prompts], those that were drawn.
    """
    taus = []
    for drawn in prompts:
        # [seeds, resamples, 2] -> weighted over seeds: [resamples, 2]
        pooled = torch.einsum("rs,src->rc", weight, counts[:, drawn].sum(2))
        taus.append(pooled[:, 0] / pooled[:, 1].clamp_min(1))
    return torch.stack(taus).mean(0)


def _figures(rows: Sequence[JudgedFit], taus: _Taus, groups: Mapping[str, Tensor]) -> RecipeFigures:
    counts, fits = taus.counts, [row.fit for row in rows]
    by_group = {name: _tau(counts[:, at].sum((0, 1))) for name, at in groups.items()}
    return RecipeFigures(
        tau=round(sum(by_group.values()) / len(groups), 4),
        interval=_interval(taus.draws),
        tau_by_group={name: round(tau, 4) for name, tau in by_group.items()},
        tau_by_seed=[
            round(sum(_tau(one[at].sum(0)) for at in groups.values()) / len(groups), 4)
            for one in counts
        ],
        by_position=_by_position(rows),
        seconds=round(sum(fit.seconds for fit in fits) / len(fits), 1),
        seconds_by_seed=[fit.seconds for fit in fits],
        flops=sum(fit.flops for fit in fits) / len(fits),
        layer_rows=round(sum(fit.rows("layer_rows") for fit in fits) / len(fits)),
        head_rows=round(sum(fit.rows("head_rows") for fit in fits) / len(fits)),
    )


def _against(own: RecipeFigures, baseline: RecipeFigures, interval: Interval) -> Against:
    low, high = interval
    return Against(
        ratio=round(own.tau / baseline.tau, 4),
        ratio_interval=interval,
        differs=not low <= 1.0 <= high,
        seconds_ratio=round(own.seconds / max(baseline.seconds, 1e-9), 4),
        flops_ratio=round(own.flops / max(baseline.flops, 1e-9), 4),
        rows_ratio=round(own.layer_rows / max(baseline.layer_rows, 1), 4),
    )


def _by_position(rows: Sequence[JudgedFit]) -> list[float] | None:
    known = [row.accepted_at for row in rows if row.accepted_at is not None]
    if len(known) < len(rows):
        return None
    accepted = torch.tensor(known, dtype=torch.float64).sum(0)
    cycles = sum(cycles for row in rows for _, _, cycles in row.prompts)
    reached = torch.cat([torch.tensor([float(cycles)]), accepted[:-1]])
    return [round(float(one), 4) for one in accepted / reached.clamp_min(1)]


def _curves(
    of: Mapping[str, Sequence[JudgedFit]],
    arms: Mapping[str, RecipeFigures],
    taus: Mapping[str, _Taus],
) -> dict[str, Curve]:
    points: dict[str, list[str]] = {}
    for name, (first, *_) in of.items():
        if first.curve:
            points.setdefault(first.curve, []).append(name)
    tokens = {name: rows[-1].fit.answer_tokens for name, rows in of.items()}
    out = {}
    for curve, names in points.items():
        names.sort(key=tokens.__getitem__)
        draws = torch.stack([taus[name].draws for name in names], dim=1)
        out[curve] = foresee([tokens[n] for n in names], [arms[n].tau for n in names], draws)
    return out


def _interval(values: Tensor) -> Interval:
    low, high = interval(values)
    return round(low, 4), round(high, 4)


def _tau(pooled: Tensor) -> float:
    return float(pooled[0] / pooled[1].clamp_min(1))
