"""Do the scores of layers predict drafters? Compare them with pairs that were trained. (Ours.)

The arms of the comparison (`sgl-entropy train compare --json`) should differ in their layers alone.
Rank correlations tell which score a user may trust on this target.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.base.json_file import read_object
from sgl_entropy.base.tables import text_table
from sgl_entropy.drafter.config import hidden_state_number

Pair = tuple[int, int]
_FEWEST = 4
# Each score -> what tables call it.
_SCORES = {"curvature": "curvature", "lidar": "LiDAR", "metrics": "both", "probe": "probe"}


@dataclass(frozen=True)
class TrainedPair:
    """Two tapped layers (ids from 0, rising) and the acceptance length of the drafter."""

    arm: str
    layers: Pair
    tau: float


@dataclass(frozen=True)
class ScoredPair:
    """A trained pair's scores beside its tau.

    Attributes:
        curvature, lidar: of whichever layer has more.
        metrics: the best sum of one layer's curvature and the other's LiDAR, both in standard
            deviations over the layers.
        probe: None = it was not asked for.
    """

    arm: str
    target_layer_ids: Pair
    tau: float
    curvature: float
    lidar: float
    metrics: float
    probe: float | None = None


@dataclass(frozen=True)
class ScoredPairs:
    """All of them; ``spearman``: score -> its rank correlation with tau."""

    arms: tuple[ScoredPair, ...]
    spearman: Mapping[str, float]

    def table(self) -> str:
        """For people: the arms, the best first."""
        header = ["layer ids", "tau", *(_SCORES[name] for name in self.spearman)]
        rows = [
            [
                str(list(row.target_layer_ids)),
                f"{row.tau:.3f}",
                *(f"{getattr(row, name):.3f}" for name in self.spearman),
            ]
            for row in sorted(self.arms, key=lambda row: -row.tau)
        ]
        ranks = [f"{rank:+.2f}" for rank in self.spearman.values()]
        return text_table(header, [*rows, ["rank correlation", "", *ranks]])


def read_trained(path: Path) -> list[TrainedPair]:
    """The EDSD drafters of a comparison that tap two layers, in its order.

    Raises:
        ValueError: no such report, or fewer than four pairs.
    """
    raw = read_object(path)
    arms, runs = raw.get("arms"), raw.get("runs")
    if not isinstance(arms, dict) or not isinstance(runs, list):
        raise ValueError(f"{path}: not a report of `sgl-entropy train compare --json`")
    pairs: dict[str, TrainedPair] = {}
    for run in runs:
        layers = run.get("layers") if isinstance(run, dict) else None
        if not isinstance(layers, list):
            raise ValueError(f"{path}: its runs do not say which layers they tap: compare again")
        if run["algorithm"] != "EDSD" or len(layers) != 2 or run["arm"] in pairs:
            continue
        low, high = sorted(layers)
        pairs[run["arm"]] = TrainedPair(run["arm"], (low, high), float(arms[run["arm"]]["tau"]))
    if len(pairs) < _FEWEST:
        raise ValueError(
            f"{path}: {len(pairs)} of its arms are EDSD drafters of two layers; at least {_FEWEST} "
            "are needed to rank"
        )
    return list(pairs.values())


def check_tapped(trained: Sequence[TrainedPair], num_layers: int) -> None:
    """
    Raises:
        ValueError: one taps a layer that cannot be tapped in a target of ``num_layers``.
    """
    for one in trained:
        _, high = one.layers
        if high > num_layers - 2:
            raise ValueError(
                f"--against: {one.arm} taps layer {high}, of a target of {num_layers} layers"
            )


def score_pairs(
    trained: Sequence[TrainedPair],
    curvature: Sequence[float],
    lidar: Sequence[float],
    explained: Mapping[Pair, float] | None,
) -> ScoredPairs:
    """Scores beside tau, and the rank correlation of each score with tau.

    Args:
        curvature, lidar: of hidden states 0 .. L.
        explained: the probe's, of every trained pair; None = the probe was not asked for.
    """
    bends, tells = _standardised(curvature), _standardised(lidar)
    rows = []
    for one in trained:
        a, b = map(hidden_state_number, one.layers)
        rows.append(
            ScoredPair(
                one.arm,
                one.layers,
                round(one.tau, 4),
                round(max(curvature[a], curvature[b]), 4),
                round(max(lidar[a], lidar[b]), 4),
                round(max(bends[a] + tells[b], bends[b] + tells[a]), 4),
                None if explained is None else round(explained[one.layers], 4),
            )
        )
    taus = [one.tau for one in trained]
    scores = [name for name in _SCORES if name != "probe" or explained is not None]
    ranks = {n: round(spearman([getattr(row, n) for row in rows], taus), 3) for n in scores}
    return ScoredPairs(tuple(rows), ranks)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank. 0 where all of one are equal."""
    left, right = _ranks(one), _ranks(other)
    if len(set(left)) == 1 or len(set(right)) == 1:
        return 0.0
    return statistics.correlation(left, right)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def _standardised(profile: Sequence[float]) -> list[float]:
    """About the candidates' mean, in their standard deviations."""
    inner = profile[1:-1]
    mean, spread = statistics.fmean(inner), statistics.pstdev(inner)
    return [(value - mean) / spread if spread else 0.0 for value in profile]
