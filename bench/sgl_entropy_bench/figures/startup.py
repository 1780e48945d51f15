"""Time from launch to health, and memory, with and without a drafter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.demo import load_prompts
from sgl_entropy_bench.figures.figure_plan import FigurePlan
from sgl_entropy_bench.figures.stats import spread


def measure(plan: FigurePlan) -> tuple[dict[str, Any], str]:
    """Returns the data (by arm: seconds and bytes of each start) and the page.

    One start of each arm comes first and is not counted: it fills the disk cache for all.
    """
    starts = 1 if plan.quick else 3
    arms = plan.arms()
    data: dict[str, dict[str, list[float]]] = {
        arm.name: {"startup_s": [], "ready_bytes": [], "used_bytes": []} for arm in arms
    }
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
                row = data[arm.name]
                row["startup_s"].append(round(server.startup_s, 2))
                row["ready_bytes"].append(ready)
                row["used_bytes"].append(server.memory_bytes())
    progress.close()
    result = {"starts": starts, "max_total_tokens": plan.engine.max_total_tokens, "arms": data}
    return result, page(result)


def page(data: Mapping[str, Any]) -> str:
    """The figure as Markdown."""
    rows = []
    for name, row in data["arms"].items():
        seconds = spread(row["startup_s"])
        rows.append(
            [
                name,
                f"{seconds.median:.1f} ({seconds.low:.1f}-{seconds.high:.1f})",
                *(
                    f"{spread(row[key]).median / 2**20:.0f}"
                    for key in ("ready_bytes", "used_bytes")
                ),
            ]
        )
    header = ("arm", "start-up s, median (quartiles)", "MiB when ready", "MiB after 10 requests")
    return "\n\n".join(
        [
            "# Start-up time and memory of the server",
            f"{data['starts']} start(s) an arm after one that fills the disk cache, in turn; from "
            "launch to the first healthy answer. Memory of all its processes, shared pages "
            f"counted once, with a KV pool of {data['max_total_tokens']} tokens.",
            markdown_table(header, rows),
        ]
    )
