"""EASD in the server: what it costs where it never fires, and what it does where it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sgl_entropy_bench.figures import easd_grid, easd_overhead
from sgl_entropy_bench.figures.figure_plan import FigurePlan
from sgl_entropy_bench.http.chat import ChatTemplate

# By the figure's name: what it measures of each drafter, and its title.
PARTS = {
    "easd": (easd_grid, "EASD in the server: its effect by threshold"),
    "easd-overhead": (easd_overhead, "EASD in the server: what it costs where it never fires"),
}


def measure(
    plan: FigurePlan, figure: str, drafters: Sequence[str] = ("edsd",), amount: Any = None
) -> tuple[dict[str, Any], str]:
    """One of ``PARTS`` for each drafter; returns the data (by drafter) and the page.

    Args:
        amount: prompts a benchmark (``easd``), batches by batch size (``easd-overhead``). None =
            those of the full or of the quick version.

    What is finished of an unfinished figure is kept; once all of it is written, it is dropped, so
    that the next call measures anew.
    """
    part, title = PARTS[figure]
    template = ChatTemplate(plan.engine.target)
    dtype = plan.engine.dtype
    data: dict[str, Any] = {"dtype": dtype, "drafters": {}}
    text, done = [f"# {title}"], []
    for name in drafters:
        data["drafters"][name], records = part.measure(plan, name, template, amount)
        done.append(records)
        if len(drafters) > 1:
            text.append(f"## {name}")
        text.append(part.section(data["drafters"][name], name, dtype))
    plan.spent.extend(records.path for records in done)
    return data, "\n\n".join(text)
