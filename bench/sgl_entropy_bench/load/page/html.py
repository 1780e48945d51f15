"""Plots as inline SVG for the page of a report, for light and dark backgrounds.

Axes and text take the colours of the page; an arm has one colour and marker in all plots.
"""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sgl_entropy_bench.load.judge.folders import Folder
from sgl_entropy_bench.load.page.plots import INK, PAPER, RULE, drawn, short

# Okabe and Ito's palette, which colour-blind readers can tell apart, less its yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
_SETTINGS = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("font.size", "axes.titlesize", "legend.fontsize"), 9),
    "grid.color": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    # A name may hold a dollar sign.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Plot:
    """One plot of the page: ``name`` is its id, ``note`` says how to read it."""

    name: str
    title: str
    note: str
    svg: str


def require_matplotlib() -> None:
    """Raises ValueError where plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "the report's plots need matplotlib, which is not installed: "
            "pip install 'sgl-entropy[plots]'"
        )


def plots(folder: Folder, arms: Sequence[str], suffix: str = "") -> list[Plot]:
    """All plots that a folder has data for.

    Args:
        arms: those of all folders on the page, so that each has one colour.
        suffix: appended to the names of the plots, which must be unique on a page.
    """
    from matplotlib import rc_context

    styles = {
        arm: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, arm in enumerate(arms)
    }
    out: list[Plot] = []
    with rc_context(_SETTINGS), warnings.catch_warnings():
        # Warnings of signs that matplotlib's font lacks; the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph")
        for name, title, note, figure in drawn(folder, styles):
            name = re.sub(r"[^\w.-]", "_", name) + suffix
            while any(plot.name == name for plot in out):
                name += "_"
            out.append(Plot(name, title, note, _svg(figure, name, title)))
    return out


def _svg(figure: Any, name: str, title: str) -> str:
    """The figure as an element of a page: ids of its own, the page's colours."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = out.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    changes: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r' xmlns(:\w+)?="[^"]*"', ""),
        (r'^<g id="[^"]*"', "<g"),
        (r' id="', f' id="{name}-'),
        (r' xlink:href="#', f' href="#{name}-'),
        (r"url\(#", f"url(#{name}-"),
        (INK, "currentColor"),
        (RULE, "var(--rule)"),
        (PAPER, "var(--paper)"),
        (r"(\d\.\d\d)\d+", r"\1"),
    ]

    def tag(match: re.Match[str]) -> str:
        shown = match[0]
        for pattern, to in changes:
            shown = re.sub(pattern, to, shown)
        return shown

    # Only in tags: a name may read like an attribute.
    text = re.sub(r"<[^>]*>", tag, text)
    label = escape(short(title, 200))
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
