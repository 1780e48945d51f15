"""EASD in the server: what it costs where it never fires, and what it does where it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.figures import easd_grid, easd_overhead
from sgl_entropy_bench.figures.figure_plan import FigurePlan

# By the figure's name: what it measures of each drafter, and its title.
PARTS = {
    "easd": (easd_grid, "EASD in the server: its effect by threshold"),
    "easd-overhead": (easd_overhead, "EASD in the server: what it costs where it never fires"),
}


@dataclass(frozen=True)
class EasdFigure:
    """One of ``PARTS``, by drafter."""

    dtype: str
    drafters: Mapping[str, easd_grid.GridFigure | easd_overhead.OverheadFigure]


def measure(
    plan: FigurePlan, figure: str, drafters: Sequence[str] = ("edsd",), amount: Any = None
) -> tuple[EasdFigure, str]:
    """One of ``PARTS`` for each drafter; returns the figure and its page.

    Args:
        amount: prompts a benchmark (``easd``), batches by batch size (``easd-overhead``). None =
            those of the full or of the quick version.

    What is finished of an unfinished figure is kept; once all of it is written, it is dropped, so
    that the next call measures anew.
    """
    part, title = PARTS[figure]
    dtype = plan.engine.dtype
    figures, text = {}, [f"# {title}"]
    for name in drafters:
        figures[name] = part.measure(plan, name, amount)
        if len(drafters) > 1:
            text.append(f"## {name}")
        text.append(part.section(figures[name], name, dtype))
    return EasdFigure(dtype, figures), "\n\n".join(text)
