"""Both profiles as a figure, in the form of the paper's Figure 4: a panel a metric, over layers."""

from __future__ import annotations

from pathlib import Path

from sgl_entropy.drafter.config import target_layer_id
from sgl_entropy.select.report import SelectReport

_COLOURS = ("#1f77b4", "#d62728")


def draw(report: SelectReport, path: Path) -> None:
    """Write a PNG with both profiles, their bootstrap bands and the choice."""
    from matplotlib.figure import Figure

    choice = report.choice
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    rows = (
        ("Curvature", "radians", report.curvature, report.curvature_interval, "a", choice.a),
        ("LiDAR", "nats", report.lidar, report.lidar_interval, "b", choice.b),
    )
    for axes, colour, (name, unit, profile, band, letter, state) in zip(
        panels, _COLOURS, rows, strict=True
    ):
        states = range(len(profile))
        axes.fill_between(
            states,
            [low for low, _ in band],
            [high for _, high in band],
            color=colour,
            alpha=0.2,
            linewidth=0,
            label="spread over resampled texts, 5-95 %",
        )
        axes.plot(states, profile, color=colour, marker="o", markersize=3)
        axes.axvline(state, color="grey", linestyle="--", linewidth=1)
        axes.plot(
            [state],
            [profile[state]],
            marker="*",
            markersize=14,
            linestyle="none",
            color=colour,
            label=f"{letter} = {state} (layer id {target_layer_id(state)})",
        )
        axes.set_title(f"{name}: higher is better")
        axes.set_xlabel("hidden state (0 = embedding output)")
        axes.set_ylabel(f"{name} ({unit})")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    count = report.texts["count"]
    figure.suptitle(f"{Path(report.target).name}, {count} texts", fontsize=10)
    figure.savefig(path, format="png", dpi=150)
