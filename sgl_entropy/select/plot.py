"""The profiles as a figure, in the form of the paper's Figure 4: one panel for each metric.

With the probe, a third panel: what every layer explains alone, and in its best tried pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sgl_entropy.drafter.config import hidden_state_number, target_layer_id
from sgl_entropy.select.probe import Probe
from sgl_entropy.select.selection_report import SelectReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f77b4", "#d62728")
_PROBE = "#2ca02c"


def draw(report: SelectReport, path: Path) -> None:
    """Write a PNG with both profiles, their bootstrap bands, the probe and the choice."""
    from matplotlib.figure import Figure

    choice = report.choice
    count = 2 if report.probe is None else 3
    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    panels = figure.subplots(1, count)
    rows = (
        ("Curvature", "radians", report.curvature, "a", choice.a),
        ("LiDAR", "nats", report.lidar, "b", choice.b),
    )
    for axes, colour, (name, unit, profile, letter, state) in zip(
        panels[:2], _COLOURS, rows, strict=True
    ):
        states = range(len(profile.values))
        axes.fill_between(
            states,
            [low for low, _ in profile.interval],
            [high for _, high in profile.interval],
            color=colour,
            alpha=0.2,
            linewidth=0,
            label="spread over resampled texts, 5-95 %",
        )
        axes.plot(states, profile.values, color=colour, marker="o", markersize=3)
        axes.axvline(state, color="grey", linestyle="--", linewidth=1)
        axes.plot(
            [state],
            [profile.values[state]],
            marker="*",
            markersize=14,
            linestyle="none",
            color=colour,
            label=f"{letter} = {state} (layer id {target_layer_id(state)})",
        )
        _finish(axes, name, unit)
    if report.probe is not None:
        _draw_probe(panels[2], report.probe)
    figure.suptitle(f"{Path(report.target).name}, {report.texts.count} texts", fontsize=10)
    figure.savefig(path, format="png", dpi=150)


def _draw_probe(axes: Axes, probe: Probe) -> None:
    states = [hidden_state_number(layer) for layer in range(len(probe.alone))]
    axes.plot(states, probe.alone, color="grey", marker="o", markersize=3, label="alone")
    # Pairs come best first.
    best = [
        next(share for pair, share in probe.pairs.items() if layer in pair)
        for layer in range(len(probe.alone))
    ]
    axes.plot(states, best, color=_PROBE, marker="o", markersize=3, label="in its best pair")
    chosen = [hidden_state_number(layer) for layer in probe.best]
    axes.plot(
        chosen,
        [probe.pairs[probe.best]] * 2,
        marker="*",
        markersize=14,
        linestyle="none",
        color=_PROBE,
        label=f"hidden states {chosen} (layer ids {list(probe.best)})",
    )
    _finish(axes, "Probe", "explained of the next final state")


def _finish(axes: Axes, name: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"{name}: higher is better")
    axes.set_xlabel("hidden state (0 = embedding output)")
    axes.set_ylabel(f"{name} ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
