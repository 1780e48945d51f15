"""Figures of acceptance against uncertainty, in the form of the EDSD paper's Figure 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.evaluate.report import DrafterReport
from sgl_entropy.evaluate.uncertainty import FirstDrafts, HeatMap, heat_map
from sgl_entropy.verify.calibration import Calibration
from sgl_entropy.verify.observations import Observations

# Thresholds on the calibration's right axis.
_STEPS = 60
_BLUE, _RED = "#1f77b4", "#d62728"


def draw_acceptance(report: DrafterReport, path: Path) -> None:
    """Write a PNG: acceptance by target entropy, and where both entropies lie.

    Raises:
        ValueError: the report holds no entropies.
    """
    from matplotlib.figure import Figure

    figures = report.acceptance
    if figures.by_target_entropy_decile is None or figures.heat_map is None:
        raise ValueError("there is nothing to draw without entropies")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    parts = figures.by_target_entropy_decile
    names = ["{:.2f}-{:.2f}".format(*part.entropy) for part in parts]
    left.bar(names, [part.acceptance for part in parts], color=_BLUE)
    left.set_xlabel("target entropy, equal parts of the positions (nats)")
    left.set_ylabel("first draft accepted")
    left.set_ylim(0, 1)
    left.tick_params(axis="x", rotation=45)
    left.grid(axis="y", alpha=0.3)

    figure.colorbar(_draw_cells(right, figures.heat_map), ax=right, label="first draft accepted")
    name = Path(report.subject.drafter).name
    tau = figures.pooled.acceptance_length
    figure.suptitle(f"{name}: acceptance length {tau:.2f}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def draw_calibration(calibration: Calibration, seen: Observations, path: Path) -> None:
    """Write a PNG or SVG, by the name's ending.

    Left: both entropies' joint density with acceptance, and the calibrated thresholds. Right: the
    share of positions that fire if both thresholds are the same; a line shows the share of the
    calibrated pair, which may differ.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rule, at = calibration.rule, seen.positions
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    cells = heat_map(FirstDrafts(at.target_entropy, at.draft_entropy, seen.accepted))
    figure.colorbar(_draw_cells(left, cells), ax=left, label="draft accepted")
    left.axvline(rule.target_entropy, color=_RED, linewidth=1)
    left.axhline(rule.draft_entropy, color=_RED, linewidth=1)

    most = float(torch.minimum(at.target_entropy, at.draft_entropy).max())
    limits = [most * step / _STEPS for step in range(_STEPS + 1)]
    rules = [replace(rule, target_entropy=nats, draft_entropy=nats) for nats in limits]
    unsure = [float(at.unsure(one).double().mean()) for one in rules]
    fired = [float(at.fires(one).double().mean()) for one in rules]
    right.plot(limits, unsure, color=_BLUE, linestyle="--", label="both entropies above")
    right.plot(
        limits, fired, color=_BLUE, label=f"and overlap of top {rule.top_n} >= {rule.overlap:g}"
    )
    right.axhline(
        calibration.rates.share,
        color=_RED,
        linewidth=1,
        label=f"calibrated: {rule.target_entropy:.2f} (target), {rule.draft_entropy:.2f} (draft)",
    )
    right.set_yscale("symlog", linthresh=0.01)
    right.set_ylim(0, 1)
    right.set_xlabel("threshold of both entropies (nats)")
    right.set_ylabel("share of judged positions that fire")
    right.grid(alpha=0.3)
    right.legend(loc="best")
    figure.suptitle(
        f"{calibration.drafter.name} on {calibration.target.name}: {len(seen):,} positions",
        fontsize=10,
    )
    # The same bytes each time: neither dates nor random names in an SVG.
    kind = path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "sgl-entropy"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, format=kind, dpi=110, metadata=metadata)


def _draw_cells(axes: Any, cells: HeatMap) -> Any:
    """Dots where both entropies lie: their area by positions, their colour by acceptance."""
    width, side = cells.width, len(cells.positions)
    points = [(t, d, n, cells.accepted[t][d] / n) for t in range(side) for d in range(side)
              if (n := cells.positions[t][d])]  # fmt: skip
    most = max(n for _, _, n, _ in points)
    dots = axes.scatter(
        [(t + 0.5) * width for t, _, _, _ in points],
        [(d + 0.5) * width for _, d, _, _ in points],
        # Area by share of positions: where hardly anything lies, nothing should catch the eye.
        s=[260 * (n / most) ** 0.5 for _, _, n, _ in points],
        c=[share for _, _, _, share in points],
        cmap="viridis",
        vmin=0,
        vmax=1,
        marker="s",
    )
    axes.plot([0, side * width], [0, side * width], color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("target entropy (nats; the last cell holds all above)")
    axes.set_ylabel("draft entropy (nats)")
    return dots
