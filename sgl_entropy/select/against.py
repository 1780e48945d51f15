"""Do the scores of layers foretell drafters? Against a comparison that trained some pairs. (Ours.)

The comparison (`sgl-entropy train compare --json`) should have arms that differ in their layers
alone. Rank correlations say which score a user may trust on this target.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.json_file import read_object
from sgl_entropy.drafter.config import hidden_state_number

Pair = tuple[int, int]
_FEWEST = 4


@dataclass(frozen=True)
class Trained:
    """Two tapped layers (ids from 0, rising) and the acceptance length of the drafter."""

    arm: str
    layers: Pair
    tau: float


def read_trained(path: Path) -> list[Trained]:
    """The EDSD drafters of a comparison that tap two layers, in its order.

    Raises:
        ValueError: no such report, or fewer than four pairs.
    """
    raw = read_object(path)
    arms, runs = raw.get("arms"), raw.get("runs")
    if not isinstance(arms, dict) or not isinstance(runs, list):
        raise ValueError(f"{path}: not a report of `sgl-entropy train compare --json`")
    found: dict[str, Trained] = {}
    for run in runs:
        layers = run.get("layers") if isinstance(run, dict) else None
        if not isinstance(layers, list):
            raise ValueError(f"{path}: its runs do not say which layers they tap: compare again")
        if run["algorithm"] != "EDSD" or len(layers) != 2 or run["arm"] in found:
            continue
        low, high = sorted(layers)
        found[run["arm"]] = Trained(run["arm"], (low, high), float(arms[run["arm"]]["tau"]))
    if len(found) < _FEWEST:
        raise ValueError(
            f"{path}: {len(found)} of its arms are EDSD drafters of two layers; at least {_FEWEST} "
            "are needed to rank"
        )
    return list(found.values())


def check_tapped(trained: Sequence[Trained], num_layers: int) -> None:
    """
    Raises:
        ValueError: one taps a layer that a target of ``num_layers`` does not let tap.
    """
    for one in trained:
        _, high = one.layers
        if high > num_layers - 2:
            raise ValueError(
                f"--against: {one.arm} taps layer {high}, of a target of {num_layers} layers"
            )


def against(
    trained: Sequence[Trained],
    curvature: Sequence[float],
    lidar: Sequence[float],
    explained: Mapping[Pair, float] | None,
) -> dict[str, Any]:
    """Scores beside tau, and the rank correlation of each score with tau.

    Args:
        curvature, lidar: of hidden states 0 .. L.
        explained: the probe's, of every trained pair; None = it was not asked.

    Returns:
        ``arms``: rows with ``arm``, ``target_layer_ids``, ``tau`` and the scores of the pair:
        ``curvature`` and ``lidar`` of whichever layer has more, ``metrics`` (the best sum of one
        layer's curvature and the other's LiDAR, both in standard deviations over the layers),
        ``probe``; and ``spearman``: score -> correlation.
    """
    bends, tells = _standardised(curvature), _standardised(lidar)
    rows = []
    for one in trained:
        a, b = map(hidden_state_number, one.layers)
        row: dict[str, Any] = {
            "arm": one.arm,
            "target_layer_ids": list(one.layers),
            "tau": one.tau,
            "curvature": max(curvature[a], curvature[b]),
            "lidar": max(lidar[a], lidar[b]),
            "metrics": max(bends[a] + tells[b], bends[b] + tells[a]),
        }
        if explained is not None:
            row["probe"] = explained[one.layers]
        rows.append({name: _rounded(value) for name, value in row.items()})
    taus = [one.tau for one in trained]
    scores = [name for name in ("curvature", "lidar", "metrics", "probe") if name in rows[0]]
    return {
        "arms": rows,
        "spearman": {
            name: round(spearman([row[name] for row in rows], taus), 3) for name in scores
        },
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """For people: the arms, the best first."""
    names = {"curvature": "curvature", "lidar": "LiDAR", "metrics": "both", "probe": "probe"}
    scores = list(found["spearman"])
    table = [("layer ids", "tau", *(names[score] for score in scores))]
    for row in sorted(found["arms"], key=lambda row: -row["tau"]):
        values = (f"{row[score]:.3f}" for score in scores)
        table.append((json.dumps(row["target_layer_ids"]), f"{row['tau']:.3f}", *values))
    table.append(("rank correlation", "", *(f"{found['spearman'][s]:+.2f}" for s in scores)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]


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


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
