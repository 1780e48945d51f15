"""A comparison for people: a table for a terminal, and a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from sgl_entropy.base.tables import markdown_table
from sgl_entropy.train.compare.records import JudgedFit
from sgl_entropy.train.compare.scaling_law import curve_table
from sgl_entropy.train.compare.summary import ComparisonSummary, RecipeFigures


def table(summary: ComparisonSummary) -> str:
    """The figures; where an interval includes no difference, it says so."""
    header, rows = _taus(summary)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    if summary.curves:
        lines += ["", curve_table(summary.curves)]
    return "\n".join(lines)


def page(summary: ComparisonSummary, runs: Sequence[JudgedFit], title: str, at_once: int) -> str:
    """The same as Markdown, with tau on each benchmark, and costs.

    Args:
        at_once: trainings that ran side by side, which their seconds depend on.
    """
    seeds = sorted({run.seed for run in runs})
    tokens = sorted({run.fit.answer_tokens for run in runs})
    devices = sorted({run.fit.device for run in runs})
    parts = [
        f"# {title}",
        f"tau: mean over {len(summary.groups)} benchmarks of pooled tokens a cycle, greedy "
        f"chains by the plain drafter. Seeds: {', '.join(map(str, seeds))}; answer tokens: "
        f"{', '.join(map(str, tokens))}. Intervals: 95 %, over prompts (and seeds); differences "
        f"are paired by prompt. Seconds are of one training on {' or '.join(devices)}, "
        f"{at_once} at a time, in its optimizer steps: the start, held-out answers and "
        "checkpoints, alike for all, are left out.",
        markdown_table(*_taus(summary)),
        markdown_table(*_by_group(summary)),
        markdown_table(*_costs(summary)),
    ]
    positions = [(name, arm.by_position) for name, arm in summary.arms.items()]
    rows = [[name, *(f"{one:.3f}" for one in places)] for name, places in positions if places]
    if len(rows) == len(positions):
        depth = len(rows[0]) - 1
        parts.append(markdown_table(["acceptance of draft", *map(str, range(1, depth + 1))], rows))
    if summary.curves:
        parts.append("```\n" + curve_table(summary.curves) + "\n```")
    return "\n\n".join(parts)


Table = tuple[list[str], list[list[str]]]


def _taus(summary: ComparisonSummary) -> Table:
    """Header, and a row for each recipe."""
    header = ["arm", "tau", "95 % interval", "against " + summary.baseline, "seconds", "TFLOP"]
    rows = [
        [
            name,
            f"{arm.tau:.3f}",
            f"{arm.interval[0]:.3f} to {arm.interval[1]:.3f}",
            _difference(arm),
            f"{arm.seconds:.0f}",
            f"{arm.flops / 1e12:.1f}",
        ]
        for name, arm in summary.arms.items()
    ]
    return header, rows


def _difference(arm: RecipeFigures) -> str:
    if arm.against is None:
        return ""
    ratio, low, high = (_percent(one) for one in (arm.against.ratio, *arm.against.ratio_interval))
    return f"{ratio} % ({low} to {high})" + ("" if arm.against.differs else ", no difference")


def _by_group(summary: ComparisonSummary) -> Table:
    rows = [
        [name, *(f"{arm.tau_by_group[group]:.3f}" for group in summary.groups)]
        for name, arm in summary.arms.items()
    ]
    return ["tau", *summary.groups], rows


def _costs(summary: ComparisonSummary) -> Table:
    """What each recipe processed and took, and how much more or less than the baseline."""
    header = ["cost", "rows, 1000s", "of them judged", "TFLOP", "seconds by seed"]
    header += [f"against {summary.baseline}: rows", "FLOPs", "seconds"]
    rows = []
    for name, arm in summary.arms.items():
        over, ratios = arm.against, ["", "", ""]
        if over is not None:
            costs = (over.rows_ratio, over.flops_ratio, over.seconds_ratio)
            ratios = [f"{_percent(ratio)} %" for ratio in costs]
        rows.append(
            [
                name,
                f"{arm.layer_rows / 1e3:,.0f}",
                f"{arm.head_rows / 1e3:,.0f}",
                f"{arm.flops / 1e12:.1f}",
                ", ".join(f"{one:.0f}" for one in arm.seconds_by_seed),
                *ratios,
            ]
        )
    return header, rows


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"
