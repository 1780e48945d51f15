"""Speed with and without drafters, in one run and paired (``paired``).

End-to-end figures with the prompts' processing stand beside those of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import BENCHMARKS, FigurePlan, benchmark_prompts
from sgl_entropy_bench.figures.paired import (
    PairedBatch,
    batches,
    long_answers,
    pooled,
    start_all,
    step,
    take_turns,
    tps,
    with_windows,
)
from sgl_entropy_bench.figures.stats import Spread, break_even, spread
from sgl_entropy_bench.http.chat import ChatTemplate

# batch size -> batches of that size: about as many seconds for each
ROUNDS = {1: 10, 2: 5, 4: 4, 8: 4, 16: 3}
QUICK_ROUNDS = {1: 3, 8: 2}
PLAIN = "none"


def measure(
    plan: FigurePlan, rounds: Mapping[int, int] | None = None
) -> tuple[dict[str, Any], str]:
    """Returns the data (by batch size and arm) and the page."""
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit, per_benchmark = (24, 6) if plan.quick else (96, 12)
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    template = ChatTemplate(plan.engine.target)
    texts = {prompt.id: template.render(prompt.messages) for prompt in prompts}
    with ExitStack() as stack:
        servers = start_all(plan, stack, plan.arms())
        usable = long_answers(plan, servers[PLAIN], prompts, texts, limit)
        measured = take_turns(servers, batches(usable, rounds), texts, limit, "speed")
    data: dict[str, Any] = {
        "max_new_tokens": limit,
        "dtype": plan.engine.dtype,
        "usable_prompts": len(usable),
        "benchmarks": list(BENCHMARKS),
        "batch_sizes": {str(size): summarise(rows) for size, rows in measured.items()},
    }
    data["break_even_batch_size"] = {
        arm.name: break_even(
            {
                int(size): row[arm.name]["decode_speedup"]
                for size, row in data["batch_sizes"].items()
                if arm.name in row
            }
        )
        for arm in plan.arms()
        if arm.name != PLAIN
    }
    return data, page(data)


def summarise(rows: Sequence[Mapping[str, PairedBatch]]) -> dict[str, dict[str, Any]]:
    """The figures of one batch size, by arm, from batches that every arm has measured.

    Batches without a full window on some arm count end to end only. Raises ValueError where no
    batch has a window on all arms.
    """
    whole = with_windows(rows)
    figures: dict[str, dict[str, Any]] = {}
    plain = pooled([row[PLAIN] for row in whole])
    for name in rows[0]:
        window = pooled([row[name] for row in whole])
        end_to_end = sum(r[name].tokens for r in rows) / sum(r[name].seconds for r in rows)
        plain_end_to_end = sum(r[PLAIN].tokens for r in rows) / sum(r[PLAIN].seconds for r in rows)
        figures[name] = {
            "batches": len(rows),
            "windows": len(whole),
            "decode_tokens_per_s": round(window.tokens_per_s, 2),
            "decode_speedup": round(window.tokens_per_s / plain.tokens_per_s, 4),
            "decode_speedup_paired": as_dict(
                spread([tps(row[name]) / tps(row[PLAIN]) for row in whole])
            ),
            "acceptance_length": round(window.tokens_per_step, 4),
            "step_ms": round(window.step_s * 1000, 2),
            "step_cost": round(window.step_s / plain.step_s, 4),
            "step_cost_paired": as_dict(
                spread([step(row[name]) / step(row[PLAIN]) for row in whole])
            ),
            "end_to_end_tokens_per_s": round(end_to_end, 2),
            "end_to_end_speedup": round(end_to_end / plain_end_to_end, 4),
        }
    return figures


def as_dict(value: Spread) -> dict[str, float]:
    """A spread for the JSON file."""
    return {
        "median": round(value.median, 4),
        "quartile_1": round(value.low, 4),
        "quartile_3": round(value.high, 4),
    }


def page(data: Mapping[str, Any]) -> str:
    """The figure as Markdown."""
    rows = []
    for size, arms in data["batch_sizes"].items():
        for name, row in arms.items():
            pair, cost = row["decode_speedup_paired"], row["step_cost_paired"]
            rows.append(
                [
                    f"{name}, batch {size}",
                    f"{row['decode_tokens_per_s']:.1f}",
                    f"{row['decode_speedup']:.2f}",
                    f"{pair['median']:.2f} ({pair['quartile_1']:.2f}-{pair['quartile_3']:.2f})",
                    f"{row['acceptance_length']:.2f}",
                    f"{row['step_ms']:.1f}",
                    f"{row['step_cost']:.2f}",
                    f"{cost['median']:.2f} ({cost['quartile_1']:.2f}-{cost['quartile_3']:.2f})",
                    f"{row['end_to_end_tokens_per_s']:.1f}",
                    f"{row['end_to_end_speedup']:.2f}",
                ]
            )
    header = (
        *("arm", "decode tok/s", "speed-up", "paired, median (quartiles)", "tau", "step ms"),
        *("step cost", "paired", "end-to-end tok/s", "speed-up"),
    )
    even = []
    for name, size in data["break_even_batch_size"].items():
        if size is None:
            even.append(f"- {name} pays at every measured batch size.")
        elif size == 0.0:
            even.append(f"- {name} pays at none of the measured batch sizes.")
        else:
            even.append(f"- {name} stops paying at batch size {size:.1f}.")
    return "\n\n".join(
        [
            "# Speed: three arms, one run, paired",
            f"Chains of 4, {data['dtype']}, temperature 0, {data['max_new_tokens']} tokens, "
            f"prompts of {', '.join(data['benchmarks'])}. Decode figures are of the window in "
            "which the whole batch decodes, pooled; a step is one draft-verify cycle or one "
            "plain decode step, and its cost is in units of the plain step at the same batch "
            "size. tau: tokens a cycle in the window. End to end includes the prompts.",
            markdown_table(header, rows),
            "Batch size at which decoding with the drafter is as fast as without (log-linear "
            "between measured sizes):\n\n" + "\n".join(even),
        ]
    )
