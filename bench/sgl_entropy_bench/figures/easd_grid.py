"""What EASD does at several thresholds: one server, each request with thresholds of its own.

Every prompt is asked once at each setting, one request at a time and the settings in rotating
order, so that speeds are paired as well. All drafted tokens are verified on this server
(``SGL_ENTROPY_CPU_CYCLE_ROWS=inf``): which positions are checked then depends on the request alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sgl_entropy.base.intervals import jackknife, shown, wilson
from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import (
    BENCHMARKS,
    FigurePlan,
    Rounded,
    benchmark_prompts,
)
from sgl_entropy_bench.figures.paired import PairedArms, answer
from sgl_entropy_bench.figures.windows import TimedAnswer
from sgl_entropy_bench.http.chat import ChatTemplate

OFF = "off"
NATS = (1.0, 1.5, 2.0, 2.5, 3.0)
QUICK_NATS = (1.0, 3.0)
OVERLAP = 0.5
FLAGS = ("--speculative-verify-mode", "easd")
ALL_VERIFIED = (("SGL_ENTROPY_CPU_CYCLE_ROWS", "inf"),)
ALL = "all"
TOKENS_PER_S_GUESS = 18.0

EasdSetting = bool | Mapping[str, float]
Rows = Sequence[Mapping[str, TimedAnswer]]


@dataclass(frozen=True)
class SettingRow:
    """One setting over some prompts; intervals from the spread between prompts.

    Attributes:
        differing: prompts whose output is not that of ``off``.
    """

    prompts: int
    tokens: float
    checks: float
    fires: float
    fires_per_check: Rounded
    fires_per_100_tokens: Rounded
    acceptance_length: Rounded
    tokens_per_s: Rounded
    speed_ratio: Rounded
    differing: int
    differing_share: Rounded


@dataclass(frozen=True)
class GridFigure:
    """One drafter's part of the figure.

    Attributes:
        settings: by name, what a request's ``custom_params["easd"]`` is.
        benchmarks: by benchmark (``all`` among them) and setting.
    """

    max_new_tokens: int
    prompts_per_benchmark: int
    settings: Mapping[str, EasdSetting]
    benchmarks: Mapping[str, Mapping[str, SettingRow]]


def settings(quick: bool) -> dict[str, EasdSetting]:
    """By name, what a request's ``custom_params["easd"]`` is."""
    grid: dict[str, EasdSetting] = {OFF: False}
    for nats in QUICK_NATS if quick else NATS:
        grid[f"{nats:g}"] = {"target_entropy": nats, "draft_entropy": nats, "overlap": OVERLAP}
    return grid


def measure(plan: FigurePlan, drafter: str, per_benchmark: int | None = None) -> GridFigure:
    """The figure of one drafter."""
    limit = 24 if plan.quick else 64
    per_benchmark = per_benchmark or (2 if plan.quick else 8)
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    arm = plan.drafted(drafter)
    arm = replace(arm, name="easd-grid", extra_flags=FLAGS, variables=ALL_VERIFIED)
    grid = settings(plan.quick)
    names = list(grid)
    rows = {}
    with PairedArms(plan, [arm], limit, "easd", f"easd: thresholds with {drafter}") as server:
        template = ChatTemplate(plan.engine.target)
        progress = Progress(30 + len(prompts) * len(names) * limit / TOKENS_PER_S_GUESS)
        for index, prompt in enumerate(prompts):
            text = template.render(prompt.messages)
            shift = index % len(names)
            answers = {}
            for name in names[shift:] + names[:shift]:
                sampling = {"custom_params": {"easd": grid[name]}}
                ask = partial(answer, text=text, limit=limit, sampling=sampling)
                (answers[name],) = server.kept(f"{prompt.id} {name}", TimedAnswer, 0, ask).values()
            rows[prompt.id] = {name: answers[name] for name in names}
            where = f"{server.title}: {index + 1}/{len(prompts)} prompts"
            progress.update(where, (index + 1) / len(prompts))
        progress.close()
    by_benchmark = {
        part: summarise([row for key, row in rows.items() if part in (ALL, key.split("/")[0])])
        for part in (ALL, *BENCHMARKS)
    }
    return GridFigure(limit, per_benchmark, grid, by_benchmark)


def summarise(rows: Rows) -> dict[str, SettingRow]:
    """The figures of each setting over ``rows``: by prompt, the answers at every setting."""
    return {name: figures(rows, name) for name in rows[0]}


def figures(rows: Rows, name: str) -> SettingRow:
    """The figures of one setting."""

    def pooled(value: Callable[[Rows], float], most: float = math.inf) -> Rounded:
        return jackknife(rows, value, most=most).rounded()

    def rate(above: str, below: str, setting: str = name) -> Callable[[Rows], float]:
        return lambda some: ratio(total(some, setting, above), total(some, setting, below))

    speed, plain = rate("decoded", "seconds"), rate("decoded", "seconds", OFF)
    per_token = rate("fires", "length")
    differing = sum(row[name].output_ids != row[OFF].output_ids for row in rows)
    low, high = wilson(differing, len(rows))
    return SettingRow(
        prompts=len(rows),
        tokens=total(rows, name, "length"),
        checks=total(rows, name, "checks"),
        fires=total(rows, name, "fires"),
        fires_per_check=pooled(rate("fires", "checks"), 1),
        fires_per_100_tokens=pooled(lambda some: 100 * per_token(some), 100),
        acceptance_length=pooled(rate("emitted", "cycles")),
        tokens_per_s=pooled(speed),
        speed_ratio=pooled(lambda some: ratio(speed(some), plain(some))),
        differing=differing,
        differing_share={
            "value": round(differing / len(rows), 4),
            "low": round(low, 4),
            "high": round(high, 4),
        },
    )


def total(rows: Rows, name: str, field: str) -> float:
    """The sum of a field of all answers at one setting."""
    return float(sum(getattr(row[name], field) for row in rows))


def ratio(above: float, below: float) -> float:
    """0 where there is nothing to divide by: no check, no cycle."""
    return above / below if below else 0.0


def section(figure: GridFigure, drafter: str, dtype: str) -> str:
    """This part of the page."""
    header = (
        *("benchmark, nats", "checks", "fires", "per check", "per 100 tokens", "tau", "tok/s"),
        *("over off", "outputs that differ"),
    )
    rows = [
        [
            f"{part}, {name}",
            f"{row.checks:.0f}",
            f"{row.fires:.0f}",
            shown(row.fires_per_check, 3),
            shown(row.fires_per_100_tokens),
            shown(row.acceptance_length),
            shown(row.tokens_per_s, 1),
            shown(row.speed_ratio),
            f"{row.differing}/{row.prompts} "
            f"({row.differing_share['low']:.2f}-{row.differing_share['high']:.2f})",
        ]
        for part, by_name in figure.benchmarks.items()
        for name, row in by_name.items()
    ]
    return "\n\n".join(
        [
            f"Thresholds. One {drafter.upper()} server in EASD mode, {dtype}, chains of 4, "
            f"temperature 0, {figure.max_new_tokens} tokens, "
            f"{figure.prompts_per_benchmark} prompts of each benchmark, one request at a time. "
            "Each request sets both entropies' thresholds (nats) itself, with an overlap of "
            f'{OVERLAP} of the 10 likeliest tokens; off: `{{"easd": false}}`, which is exact. '
            "All drafted tokens are verified (`SGL_ENTROPY_CPU_CYCLE_ROWS=inf`), so that outputs "
            "do not depend on the batch; as served by default some are pruned, and fewer checked. "
            "tok/s is of decoding alone. 95 % intervals are from the prompts (jackknife; Wilson's "
            "for the share of outputs that differ from off); no interval stands where nothing was "
            "seen.",
            markdown_table(header, rows),
        ]
    )
