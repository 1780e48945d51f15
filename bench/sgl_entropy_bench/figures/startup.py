"""Time from launch to health, and memory, with and without a drafter."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from sgl_entropy.base.intervals import quartiles
from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.demo import load_prompts
from sgl_entropy_bench.figures.figure_plan import FigurePlan


@dataclass(frozen=True)
class Starts:
    """One arm's starts: seconds until it is healthy, bytes then and after ten requests."""

    startup_s: list[float] = field(default_factory=list)
    ready_bytes: list[int] = field(default_factory=list)
    used_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class StartupFigure:
    """The whole figure, by arm."""

    starts: int
    max_total_tokens: int
    arms: Mapping[str, Starts]


def measure(plan: FigurePlan) -> tuple[StartupFigure, str]:
    """Returns the figure and its page.

    One start of each arm comes first and is not counted: it fills the disk cache for all.
    """
    starts = 1 if plan.quick else 3
    arms = plan.arms()
    measured = {arm.name: Starts() for arm in arms}
    total = (starts + 1) * len(arms)
    progress = Progress(25.0 * total)
    for index in range(total):
        arm, counted = arms[index % len(arms)], index >= len(arms)
        progress.step(
            f"startup: {arm.name}, {'start' if counted else 'warm-up'} {index + 1}/{total}",
            index / total,
        )
        with plan.server(arm).start() as server:
            ready = server.memory_bytes()
            for prompt in load_prompts() if counted else ():
                server.client.chat(prompt.messages, max_new_tokens=16)
            if counted:
                row = measured[arm.name]
                row.startup_s.append(round(server.startup_s, 2))
                row.ready_bytes.append(ready)
                row.used_bytes.append(server.memory_bytes())
    progress.close()
    figure = StartupFigure(starts, plan.engine.max_total_tokens, measured)
    return figure, page(figure)


def page(figure: StartupFigure) -> str:
    """The figure as Markdown."""
    rows = []
    for name, row in figure.arms.items():
        low, median, high = quartiles(row.startup_s)
        rows.append(
            [
                name,
                f"{median:.1f} ({low:.1f}-{high:.1f})",
                *(
                    f"{statistics.median(each) / 2**20:.0f}"
                    for each in (row.ready_bytes, row.used_bytes)
                ),
            ]
        )
    header = ("arm", "start-up s, median (quartiles)", "MiB when ready", "MiB after 10 requests")
    return "\n\n".join(
        [
            "# Start-up time and memory of the server",
            f"{figure.starts} start(s) an arm after one that fills the disk cache, in turn; from "
            "launch to the first healthy answer. Memory of all its processes, shared pages "
            f"counted once, with a KV pool of {figure.max_total_tokens} tokens.",
            markdown_table(header, rows),
        ]
    )
