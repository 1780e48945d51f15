"""A calibration as a figure: where both models are unsure, and how often EASD would fire."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sgl_entropy.evaluate.plot import draw_cells
from sgl_entropy.evaluate.uncertainty import FirstDrafts, heat_map
from sgl_entropy.verify.calibration import Calibration
from sgl_entropy.verify.observations import Observations

_STEPS = 60


def draw(calibration: Calibration, seen: Observations, path: Path) -> None:
    """Write a PNG or SVG, by the name.

    Left, in the form of the EDSD paper's Figure 2: both entropies' joint density with acceptance,
    and the calibrated thresholds. Right: the share of positions that fire if both thresholds are
    the same; the calibrated pair, which need not be, is a line.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rule = calibration.rule()
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    cells = heat_map(FirstDrafts(seen.target_entropy, seen.draft_entropy, seen.accepted))
    dots = draw_cells(left, cells)
    figure.colorbar(dots, ax=left, label="draft accepted")
    left.axvline(rule.target_entropy, color="#d62728", linewidth=1)
    left.axhline(rule.draft_entropy, color="#d62728", linewidth=1)

    most = float(torch.minimum(seen.target_entropy, seen.draft_entropy).max())
    limits = [most * step / _STEPS for step in range(_STEPS + 1)]
    rules = [replace(rule, target_entropy=at, draft_entropy=at) for at in limits]
    unsure = [float(seen.unsure(one).double().mean()) for one in rules]
    fired = [float(seen.fires(one).double().mean()) for one in rules]
    right.plot(limits, unsure, color="#1f77b4", linestyle="--", label="both entropies above")
    right.plot(
        limits, fired, color="#1f77b4", label=f"and overlap of top {rule.top_n} >= {rule.overlap:g}"
    )
    right.axhline(
        calibration.rates["share"],
        color="#d62728",
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
