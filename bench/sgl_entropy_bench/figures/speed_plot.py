"""The speed figure as a picture: decoding speed over no drafter, by batch size.

``python -m sgl_entropy_bench.figures.speed_plot speed.json speed.png`` draws a result again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.base.plots import require_plots

# Colours of Okabe and Ito, told apart by colour-blind readers too, and the names in a legend.
STYLES = {"eagle3": ("EAGLE-3", "#0072B2", "o"), "edsd": ("EDSD", "#D55E00", "s")}


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: pooled speed-up, with the quartiles of the paired batches as bars.

    Args:
        data: of ``speed.measure``, or a committed ``speed.json``.

    Raises:
        ValueError: matplotlib is missing, or ``path`` is no PNG in a folder that exists.
    """
    require_plots(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    by_size = {int(size): row for size, row in data["batch_sizes"].items()}
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color="#555555", linewidth=1, linestyle="--")
    for arm, (label, colour, marker) in STYLES.items():
        sizes = [size for size, row in sorted(by_size.items()) if arm in row]
        pooled = [by_size[size][arm]["decode_speedup"] for size in sizes]
        paired = [by_size[size][arm]["decode_speedup_paired"] for size in sizes]
        # Side by side, so that bars of two arms at one batch size do not cover each other.
        shifted = [size * (0.97 if arm == "eagle3" else 1.03) for size in sizes]
        axes.vlines(
            shifted,
            [row["quartile_1"] for row in paired],
            [row["quartile_3"] for row in paired],
            color=colour,
            alpha=0.45,
            linewidth=4,
        )
        axes.plot(shifted, pooled, color=colour, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(by_size), [str(size) for size in by_size])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("requests at a time")
    axes.set_ylabel("decoding speed over no drafter")
    axes.text(max(by_size), 1.01, "no drafter", ha="right", va="bottom", color="#555555")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.suptitle(
        "Two CPU cores, temperature 0: points pooled, bars paired quartiles", fontsize=9
    )
    figure.savefig(path, format="png", dpi=150)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
