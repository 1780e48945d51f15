"""Speed with and without drafters, in one run and paired (``paired``).

Each figure of decoding has one from end to end next to it, which includes the prompts' processing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sgl_entropy.base.intervals import quartiles
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import BENCHMARKS, FigurePlan
from sgl_entropy_bench.figures.paired import (
    PairedArms,
    Rows,
    end_to_end,
    pooled,
    ratio,
    step_s,
    tokens_per_s,
    with_windows,
)

# batch size -> batches of that size: about as many seconds for each
ROUNDS = {1: 10, 2: 5, 4: 4, 8: 4, 16: 3}
QUICK_ROUNDS = {1: 3, 8: 2}
PLAIN = "none"


@dataclass(frozen=True)
class Quartiles:
    """The spread of paired ratios."""

    median: float
    quartile_1: float
    quartile_3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Rounded for the JSON file."""
        low, median, high = (round(value, 4) for value in quartiles(values))
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.quartile_1:.2f}-{self.quartile_3:.2f})"


@dataclass(frozen=True)
class ArmSpeed:
    """One arm at one batch size.

    Attributes:
        windows: batches that decoded together on every arm; decode figures are of these alone.
        step_cost: seconds a step over those of the arm without a drafter.
        decode_speedup_paired, step_cost_paired: batch by batch; the others are pooled.
    """

    batches: int
    windows: int
    decode_tokens_per_s: float
    decode_speedup: float
    decode_speedup_paired: Quartiles
    acceptance_length: float
    step_ms: float
    step_cost: float
    step_cost_paired: Quartiles
    end_to_end_tokens_per_s: float
    end_to_end_speedup: float


@dataclass(frozen=True)
class SpeedFigure:
    """The whole figure, by batch size (as text) and arm.

    Attributes:
        break_even_batch_size: by drafter, where its speed-up falls to 1; None = it still pays at
            the largest size, 0 = it pays at none.
    """

    max_new_tokens: int
    dtype: str
    usable_prompts: int
    benchmarks: tuple[str, ...]
    batch_sizes: Mapping[str, Mapping[str, ArmSpeed]]
    break_even_batch_size: Mapping[str, float | None]


def measure(plan: FigurePlan, rounds: Mapping[int, int] | None = None) -> tuple[SpeedFigure, str]:
    """Returns the figure and its page."""
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit, per_benchmark = (24, 6) if plan.quick else (96, 12)
    with PairedArms(plan, plan.arms(), limit, "speed", more=f"{dict(rounds)}") as arms:
        batches, usable = arms.batches(rounds, per_benchmark)
        measured = arms.measure(batches)
    sizes = {size: summarise(rows) for size, rows in measured.items()}
    even = {
        arm.name: break_even({size: row[arm.name].decode_speedup for size, row in sizes.items()})
        for arm in plan.arms()
        if arm.name != PLAIN
    }
    by_size = {str(size): row for size, row in sizes.items()}
    figure = SpeedFigure(limit, plan.engine.dtype, usable, BENCHMARKS, by_size, even)
    return figure, page(figure)


def summarise(rows: Rows) -> dict[str, ArmSpeed]:
    """One batch size, by arm, from batches that every arm has measured.

    Batches without a full window on some arm count end to end only.

    Raises:
        ValueError: no batch has a window on all arms.
    """
    whole = with_windows(rows)
    figures = {}
    for name in rows[0]:
        window = pooled([row[name] for row in whole])
        speed_up = partial(ratio, tokens_per_s, name, PLAIN)
        step_cost = partial(ratio, step_s, name, PLAIN)
        figures[name] = ArmSpeed(
            batches=len(rows),
            windows=len(whole),
            decode_tokens_per_s=round(window.tokens_per_s, 2),
            decode_speedup=round(speed_up(whole), 4),
            decode_speedup_paired=Quartiles.of([speed_up([row]) for row in whole]),
            acceptance_length=round(window.tokens_per_step, 4),
            step_ms=round(window.step_s * 1000, 2),
            step_cost=round(step_cost(whole), 4),
            step_cost_paired=Quartiles.of([step_cost([row]) for row in whole]),
            end_to_end_tokens_per_s=round(end_to_end([row[name] for row in rows]), 2),
            end_to_end_speedup=round(ratio(end_to_end, name, PLAIN, rows), 4),
        )
    return figures


def break_even(speedups: Mapping[int, float]) -> float | None:
    """The batch size at which a speed-up falls to 1, from speed-ups by batch size.

    Linear in the logarithm of the batch size between the last measured size that pays and the
    next. None where the largest measured size still pays; 0.0 where not even the smallest does.
    Raises ValueError for no sizes.
    """
    if not speedups:
        raise ValueError("break_even: no batch sizes")
    sizes = sorted(speedups)
    paying = [size for size in sizes if speedups[size] > 1.0]
    if not paying:
        return 0.0
    last = paying[-1]
    if last == sizes[-1]:
        return None
    following = sizes[sizes.index(last) + 1]
    above, below = speedups[last] - 1.0, 1.0 - speedups[following]
    share = above / (above + below)
    return float(math.exp(math.log(last) + share * (math.log(following) - math.log(last))))


def page(figure: SpeedFigure) -> str:
    """The figure as Markdown."""
    rows = []
    for size, arms in figure.batch_sizes.items():
        for name, row in arms.items():
            rows.append(
                [
                    f"{name}, batch {size}",
                    f"{row.decode_tokens_per_s:.1f}",
                    f"{row.decode_speedup:.2f}",
                    str(row.decode_speedup_paired),
                    f"{row.acceptance_length:.2f}",
                    f"{row.step_ms:.1f}",
                    f"{row.step_cost:.2f}",
                    str(row.step_cost_paired),
                    f"{row.end_to_end_tokens_per_s:.1f}",
                    f"{row.end_to_end_speedup:.2f}",
                ]
            )
    header = (
        *("arm", "decode tok/s", "speed-up", "paired, median (quartiles)", "tau", "step ms"),
        *("step cost", "paired", "end-to-end tok/s", "speed-up"),
    )
    even = []
    for name, at in figure.break_even_batch_size.items():
        if at is None:
            even.append(f"- {name} pays at every measured batch size.")
        elif at == 0.0:
            even.append(f"- {name} pays at none of the measured batch sizes.")
        else:
            even.append(f"- {name} stops paying at batch size {at:.1f}.")
    return "\n\n".join(
        [
            "# Speed: three arms, one run, paired",
            f"Chains of 4, {figure.dtype}, temperature 0, {figure.max_new_tokens} tokens, "
            f"prompts of {', '.join(figure.benchmarks)}. Decode figures are of the window in "
            "which the whole batch decodes, pooled; a step is one draft-verify cycle or one "
            "plain decode step, and its cost is in units of the plain step at the same batch "
            "size. tau: tokens a cycle in the window. End to end includes the prompts.",
            markdown_table(header, rows),
            "Batch size at which decoding with the drafter is as fast as without (log-linear "
            "between measured sizes):\n\n" + "\n".join(even),
        ]
    )
