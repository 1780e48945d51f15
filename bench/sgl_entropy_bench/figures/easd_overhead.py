"""What EASD's statistics cost: the same drafter served exactly, and under EASD that never fires.

Both servers write the same tokens in the same cycles, so a cycle's time differs by the statistics
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from sgl_entropy.base.intervals import jackknife, shown
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import (
    FigurePlan,
    Records,
    Rounded,
    as_json,
    benchmark_prompts,
)
from sgl_entropy_bench.figures.paired import (
    FINISHED,
    PairedBatch,
    batches,
    equal_share,
    kept,
    long_answers,
    pooled,
    running,
    start_all,
    step,
    take_turns,
    with_windows,
)
from sgl_entropy_bench.figures.stats import spread
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.server.launch import Server

ROUNDS = {1: 20, 8: 8}
QUICK_ROUNDS = {1: 3, 8: 2}
STANDARD, EASD = "standard", "easd"
NEVER_NATS = 1000
GOAL = 0.02


@dataclass(frozen=True)
class OverheadRow:
    """One batch size.

    Attributes:
        cycle_ratio: seconds a cycle under EASD over those without, pooled.
        cycle_ratio_quartiles: low, median and high of the paired batches.
        own_ms: EASD's own code in a cycle; ``own_share``: over a cycle without EASD.
        goal: met, missed or not decided.
    """

    batches: int
    windows: int
    standard_cycle_ms: float
    easd_cycle_ms: float
    acceptance_length: float
    cycle_ratio: Rounded
    cycle_ratio_quartiles: Sequence[float]
    equal_outputs: float
    own_ms: float
    own_share: Rounded
    goal: str


@dataclass(frozen=True)
class OverheadFigure:
    """One drafter's part of the figure, by batch size (as text)."""

    max_new_tokens: int
    batch_sizes: Mapping[str, OverheadRow]


def measure(
    plan: FigurePlan, drafter: str, template: ChatTemplate, rounds: Mapping[int, int] | None = None
) -> tuple[OverheadFigure, Records]:
    """Returns the figure and the batches that it was made from."""
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit, per_benchmark = (24, 6) if plan.quick else (64, 12)
    title = f"easd: overhead with {drafter}"
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    texts = {prompt.id: template.render(prompt.messages) for prompt in prompts}
    arm = plan.drafted(drafter)
    flags = ("--speculative-verify-mode", "easd", "--easd-draft-entropy", str(NEVER_NATS))
    arms = [replace(arm, name=STANDARD), replace(arm, name=EASD, extra_flags=flags)]
    records = kept(plan, "easd", arms, limit, str(dict(rounds)))
    if FINISHED in records.rows:
        finished = records.rows[FINISHED]["figures"]
        rows_by_size = {k: OverheadRow(**row) for k, row in finished["batch_sizes"].items()}
        return OverheadFigure(finished["max_new_tokens"], rows_by_size), records
    with ExitStack() as stack:
        servers = start_all(plan, stack, arms, title)
        usable = long_answers(plan, servers[STANDARD], prompts, texts, limit, title)
        sizes = {}
        for size, groups in batches(usable, rounds).items():
            before = counted(servers[EASD])
            rows = take_turns(servers, {size: groups}, texts, limit, title, records)[size]
            own = f"own time, batch {size}"
            if own not in records.rows:
                after = counted(servers[EASD])
                records.add({"id": own, **{key: after[key] - before[key] for key in after}})
            sizes[str(size)] = summarise(rows, records.rows[own], size)
    figure = OverheadFigure(limit, sizes)
    records.add({"id": FINISHED, "figures": as_json(figure)})
    return figure, records


def counted(server: Server) -> dict[str, float]:
    """``cycles`` of all requests so far, and ``seconds`` that EASD's own code took in them."""
    with running(server):
        state = server.client.get("/get_server_info")["internal_states"][0]
    counters = state["sgl_entropy_counters"]
    return {"cycles": counters["cycles"], "seconds": counters.get("easd_seconds", 0.0)}


def summarise(
    rows: Sequence[Mapping[str, PairedBatch]], own: Mapping[str, float], size: int
) -> OverheadRow:
    """The figures of one batch size; ``own``: what ``counted`` rose by meanwhile."""
    whole = with_windows(rows)
    plain, mode = (pooled([row[name] for row in whole]) for name in (STANDARD, EASD))
    pairs = spread([step(row[EASD]) / step(row[STANDARD]) for row in whole])
    ratio = jackknife(whole, cycle_ratio).rounded()
    # Every request has its own cycles; together they take a step each.
    own_s = own["seconds"] / (own["cycles"] / size) if own["cycles"] else math.nan
    share = jackknife(whole, lambda some: own_s / exact_step(some)).rounded()
    return OverheadRow(
        batches=len(rows),
        windows=len(whole),
        standard_cycle_ms=round(plain.step_s * 1000, 2),
        easd_cycle_ms=round(mode.step_s * 1000, 2),
        acceptance_length=round(mode.tokens_per_step, 4),
        cycle_ratio=ratio,
        cycle_ratio_quartiles=[round(v, 4) for v in (pairs.low, pairs.median, pairs.high)],
        equal_outputs=round(equal_share(rows, EASD, STANDARD), 4),
        own_ms=round(own_s * 1000, 3),
        own_share=share,
        goal=verdict(share),
    )


def cycle_ratio(rows: Sequence[Mapping[str, PairedBatch]]) -> float:
    """Seconds a cycle under EASD over those without, pooled."""
    plain, mode = (pooled([row[name] for row in rows]) for name in (STANDARD, EASD))
    return mode.step_s / plain.step_s


def exact_step(rows: Sequence[Mapping[str, PairedBatch]]) -> float:
    """Seconds a cycle without EASD, pooled."""
    return pooled([row[STANDARD] for row in rows]).step_s


def verdict(share: Rounded) -> str:
    """Whether the goal is met, as far as the interval tells."""
    low, high = share["low"], share["high"]
    if high is not None and high <= GOAL:
        return "met"
    if low is not None and low > GOAL:
        return "missed"
    return "not decided"


def section(figure: OverheadFigure, drafter: str, dtype: str) -> str:
    """This part of the page."""
    rows = []
    for size, row in figure.batch_sizes.items():
        low, median, high = row.cycle_ratio_quartiles
        rows.append(
            [
                size,
                str(row.windows),
                f"{row.standard_cycle_ms:.1f}",
                f"{row.easd_cycle_ms:.1f}",
                shown(row.cycle_ratio, 3),
                f"{median:.3f} ({low:.3f}-{high:.3f})",
                f"{100 * row.equal_outputs:.0f} %",
                f"{row.own_ms:.2f}",
                shown(row.own_share, 4),
                row.goal,
            ]
        )
    header = (
        *("batch", "batches", "cycle ms, exact", "EASD", "ratio (95 %)"),
        *("paired, median (quartiles)", "equal outputs"),
        *("own ms", "share of an exact cycle", f"goal: at most {GOAL:.0%}"),
    )
    return "\n\n".join(
        [
            f"Overhead. {drafter.upper()} in a chain of 4, {dtype}, temperature 0, "
            f"{figure.max_new_tokens} tokens: verified exactly, and under EASD with a threshold "
            f"of {NEVER_NATS} nats for the drafter, which never fires. The target's entropy is "
            "computed at every checked position all the same, and the drafter's where the target's "
            "is above the default threshold; the likeliest tokens of both are only where both are "
            "above, here nowhere (`entropy-cost` has their price). "
            "Time of a draft-verify cycle in the window in which the whole batch decodes, pooled; "
            "its ratio with an interval from the batches. Two servers differ by some percent "
            "whatever they run, so the goal is judged by what EASD's own code takes in its server "
            "(`easd_seconds` in `/get_server_info`), over the other server's cycle.",
            markdown_table(header, rows),
        ]
    )
