"""EASD in the server: what it costs where it never fires, and what it does where it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_entropy_bench.chat import ChatTemplate
from sgl_entropy_bench.figures import easd_grid, easd_overhead
from sgl_entropy_bench.figures.plan import Plan


def measure(
    plan: Plan,
    drafters: Sequence[str] = ("edsd",),
    rounds: Mapping[int, int] | None = None,
    per_benchmark: int | None = None,
) -> tuple[dict[str, Any], str]:
    """Both parts for each drafter; returns the data (by drafter) and the page.

    Args:
        rounds: batches by batch size, of the overhead; per_benchmark: prompts, of the grid. None
            = those of the full or of the quick version.

    What is finished of an unfinished figure is kept; once all of it is there, it is dropped, so
    that the next call measures anew.
    """
    template = ChatTemplate(plan.engine.target)
    data: dict[str, Any] = {"dtype": plan.engine.dtype, "drafters": {}}
    done = []
    for name in drafters:
        cost, batches = easd_overhead.measure(plan, name, template, rounds)
        grid, answers = easd_grid.measure(plan, name, template, per_benchmark)
        data["drafters"][name] = {"overhead": cost, "grid": grid}
        done += [batches, answers]
    text = page(data)
    for records in done:
        records.path.unlink(missing_ok=True)
    return data, text


def page(data: Mapping[str, Any]) -> str:
    """The figure as Markdown."""
    parts = ["# EASD in the server: its cost and its effect"]
    for name, row in data["drafters"].items():
        if len(data["drafters"]) > 1:
            parts.append(f"## {name}")
        parts += [
            easd_overhead.section(row["overhead"], name, data["dtype"]),
            easd_grid.section(row["grid"], name, data["dtype"]),
        ]
    return "\n\n".join(parts)
