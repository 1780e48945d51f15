"""Acceptance against uncertainty as a figure, in the form of the EDSD paper's Figure 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: acceptance by target entropy, and where the entropies lie with acceptance.

    Args:
        figures: of ``evaluation.report`` with uncertainties.
    """
    from matplotlib.figure import Figure

    deciles, cells = figures["by_target_entropy_decile"], figures["heat_map"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{low:.2f}-{high:.2f}" for low, high in (row["entropy"] for row in deciles)]
    left.bar(names, [row["acceptance"] for row in deciles], color="#1f77b4")
    left.set_xlabel("target entropy, equal parts of the positions (nats)")
    left.set_ylabel("first draft accepted")
    left.set_ylim(0, 1)
    left.tick_params(axis="x", rotation=45)
    left.grid(axis="y", alpha=0.3)

    dots = draw_cells(right, cells)
    figure.colorbar(dots, ax=right, label="first draft accepted")
    name = Path(figures["drafter"]).name
    figure.suptitle(f"{name}: acceptance length {figures['acceptance_length']:.2f}", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def draw_cells(axes: Any, cells: Mapping[str, Any]) -> Any:
    """Where both entropies lie, by area, and acceptance there, by colour: the dots drawn.

    Args:
        cells: of ``uncertainty.heat_map``.
    """
    positions, accepted = cells["positions"], cells["accepted"]
    width, side = cells["width"], len(positions)
    points = [(t, d, n, accepted[t][d] / n) for t in range(side) for d in range(side)
              if (n := positions[t][d])]  # fmt: skip
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
