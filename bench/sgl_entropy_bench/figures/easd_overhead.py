"""What EASD's statistics cost: the same drafter served exactly, and under EASD that never fires.

Both servers write the same tokens in the same cycles, so a cycle's time differs by the statistics
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sgl_entropy.base.intervals import jackknife, quartiles, shown
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import FigurePlan, Rounded
from sgl_entropy_bench.figures.paired import (
    PairedArms,
    Rows,
    equal_share,
    pooled,
    ratio,
    running,
    step_s,
    with_windows,
)
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
    plan: FigurePlan, drafter: str, rounds: Mapping[int, int] | None = None
) -> OverheadFigure:
    """The figure of one drafter."""
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit, per_benchmark = (24, 6) if plan.quick else (64, 12)
    arm = plan.drafted(drafter)
    flags = ("--speculative-verify-mode", "easd", "--easd-draft-entropy", str(NEVER_NATS))
    arms = [replace(arm, name=STANDARD), replace(arm, name=EASD, extra_flags=flags)]
    title = f"easd: overhead with {drafter}"
    sizes = {}
    with PairedArms(plan, arms, limit, "easd", title, f"{dict(rounds)}") as paired:
        for size, groups in paired.batches(rounds, per_benchmark)[0].items():
            own, taken = f"own time, batch {size}", paired.records.rows
            before = None if own in taken else counted(paired.servers()[EASD])
            rows = paired.measure({size: groups})[size]
            if before is not None:
                after = counted(paired.servers()[EASD])
                paired.records.add({"id": own, **{key: after[key] - before[key] for key in after}})
            sizes[str(size)] = summarise(rows, taken[own], size)
    return OverheadFigure(limit, sizes)


def counted(server: Server) -> dict[str, float]:
    """``cycles`` of all requests so far, and ``seconds`` that EASD's own code took in them."""
    with running(server):
        state = server.client.get("/get_server_info")["internal_states"][0]
    counters = state["sgl_entropy_counters"]
    return {"cycles": counters["cycles"], "seconds": counters.get("easd_seconds", 0.0)}


def summarise(rows: Rows, own: Mapping[str, float], size: int) -> OverheadRow:
    """The figures of one batch size; ``own``: what ``counted`` rose by meanwhile."""
    whole = with_windows(rows)
    plain, mode = (pooled([row[name] for row in whole]) for name in (STANDARD, EASD))
    cycle_ratio = partial(ratio, step_s, EASD, STANDARD)
    pairs = quartiles([cycle_ratio([row]) for row in whole])
    # Every request has its own cycles; together they take a step each.
    own_s = own["seconds"] / (own["cycles"] / size) if own["cycles"] else math.nan
    share = jackknife(whole, lambda some: own_s / step_s([row[STANDARD] for row in some])).rounded()
    return OverheadRow(
        batches=len(rows),
        windows=len(whole),
        standard_cycle_ms=round(plain.step_s * 1000, 2),
        easd_cycle_ms=round(mode.step_s * 1000, 2),
        acceptance_length=round(mode.tokens_per_step, 4),
        cycle_ratio=jackknife(whole, cycle_ratio).rounded(),
        cycle_ratio_quartiles=[round(value, 4) for value in pairs],
        equal_outputs=round(equal_share(rows, EASD, STANDARD), 4),
        own_ms=round(own_s * 1000, 3),
        own_share=share,
        goal=verdict(share),
    )


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
