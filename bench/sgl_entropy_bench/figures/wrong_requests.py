"""Does any of 10,000 requests with wrong values end the server, or harm another request?

Beside them a greedy neighbour is asked for the same answer again and again. A server that ended is
started anew, so that one killer does not hide the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import FigurePlan
from sgl_entropy_bench.figures.leaks import InUse, greedy, idle_load
from sgl_entropy_bench.figures.wrong_values import WrongRequest, outcome_of, wrong_requests
from sgl_entropy_bench.server.arms import ServeArm
from sgl_entropy_bench.server.launch import Server

# Sent at the same time, and then the server and its neighbour are looked at.
TOGETHER = 8
NEIGHBOUR = "The capital of France is"


@dataclass(frozen=True)
class WrongRow:
    """What one arm's server made of them.

    Attributes:
        statuses: answers by status; ``none``: no answer came.
        deaths: how often the server ended.
        culprits: requests that were answered 5xx or not at all, those together with the last one
            before a death included.
        neighbours: greedy answers beside them, of which ``changed`` differed from the first.
        in_use: what was not given back at the end.
    """

    statuses: Mapping[str, int]
    deaths: int
    culprits: Sequence[str]
    neighbours: int
    changed: int
    in_use: InUse
    passed: bool


@dataclass(frozen=True)
class WrongRequestsFigure:
    """The whole figure, by arm."""

    requests: int
    seed: int
    arms: Mapping[str, WrongRow]


def measure(
    plan: FigurePlan, count: int | None = None, seed: int = 0, names: tuple[str, ...] = ("edsd",)
) -> tuple[WrongRequestsFigure, str]:
    """Returns the figure and its page.

    Args:
        count: requests an arm; None = 10,000, or 300 of the quick version.
    """
    count = count or (300 if plan.quick else 10_000)
    arms = {arm.name: run_arm(plan, arm, count, seed) for arm in plan.arms() if arm.name in names}
    figure = WrongRequestsFigure(count, seed, arms)
    return figure, page(figure)


def run_arm(plan: FigurePlan, arm: ServeArm, count: int, seed: int) -> WrongRow:
    """All requests against one arm's server."""
    statuses: Counter[str] = Counter()
    culprits: list[str] = []
    deaths = neighbours = changed = 0
    progress = Progress(60 + count * 0.1)
    server = plan.server(arm).start()
    expected = greedy(server, NEIGHBOUR)
    try:
        waiting = list(wrong_requests(count, seed))
        for begin in range(0, count, TOGETHER):
            group = waiting[begin : begin + TOGETHER]
            outcomes, beside = _send(server, group)
            statuses.update(outcome.split()[0] for outcome in outcomes)
            culprits += [
                f"{outcome} {request.name}"
                for outcome, request in zip(outcomes, group, strict=True)
                if not outcome.startswith(("2", "3", "4"))
            ]
            neighbours += 1
            changed += beside != expected
            if not server.alive():
                deaths += 1
                server.stop()
                server = plan.server(arm).start()
            progress.update(f"{arm.name}: {begin}/{count} requests, {deaths} deaths", begin / count)
        in_use = idle_load(server.client)
    finally:
        server.stop()
        progress.close()
    clean = not (deaths or changed or culprits) and in_use == InUse(0, 0)
    counts = dict(sorted(statuses.items()))
    return WrongRow(counts, deaths, culprits, neighbours, changed, in_use, clean)


def _send(server: Server, group: Sequence[WrongRequest]) -> tuple[list[str], object]:
    """The outcomes, and the neighbour's answer (or why there was none)."""
    with ThreadPoolExecutor(TOGETHER + 1) as pool:
        neighbour = pool.submit(greedy, server, NEIGHBOUR)
        outcomes = list(pool.map(lambda request: outcome_of(server.client, request), group))
        problem = neighbour.exception()
        return outcomes, problem if problem is not None else neighbour.result()


def page(figure: WrongRequestsFigure) -> str:
    """The figure as Markdown."""
    parts = [
        "# Requests with wrong values",
        f"{figure.requests} requests (seed {figure.seed}), {TOGETHER} at a time, with one or two "
        "wrong values each, to every route that reads a body; beside each group a neighbour's "
        "greedy answer.",
    ]
    for name, row in figure.arms.items():
        facts = [
            ["verdict", "no harm done" if row.passed else "HARM DONE"],
            ["the server ended", str(row.deaths)],
            *([f"answered {status}", str(number)] for status, number in row.statuses.items()),
            ["neighbours' answers that changed", f"{row.changed} of {row.neighbours}"],
            ["in use at the end", str(row.in_use)],
        ]
        parts += [f"## {name}", markdown_table(("what", "found"), facts)]
        if row.culprits:
            parts.append("Culprits:\n\n" + "\n".join(f"- `{c}`" for c in row.culprits[:40]))
    return "\n\n".join(parts)
