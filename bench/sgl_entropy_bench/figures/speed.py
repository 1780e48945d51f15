"""Speed with and without drafters, in one run and paired.

The servers of all arms are up at once and only one of them runs (the others are stopped like a
shell's Ctrl-Z does): every batch of prompts goes to each arm in turn, in rotating order, before
the next batch, so that whatever else the machine does falls on all arms alike. Decoding is
measured in the window in which the whole batch decodes (``windows``); end-to-end figures with the
prompts' processing stand beside it.

Only prompts whose greedy answer reaches the limit are used, found once with the plain arm: a
batch that loses members early has no window at its full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from sgl_entropy_bench.chat import ChatTemplate
from sgl_entropy_bench.client import Generation
from sgl_entropy_bench.figures.plan import (
    BENCHMARKS,
    BenchPrompt,
    Plan,
    Records,
    benchmark_prompts,
    in_parallel,
)
from sgl_entropy_bench.progress import Progress
from sgl_entropy_bench.servers import Server
from sgl_entropy_bench.stats import Spread, break_even, spread
from sgl_entropy_bench.tables import markdown_table
from sgl_entropy_bench.windows import Window, full_batch_window

# batch size -> batches of that size: about as many seconds for each
ROUNDS = {1: 10, 2: 5, 4: 4, 8: 4, 16: 3}
QUICK_ROUNDS = {1: 3, 8: 2}
PLAIN = "none"
WARM_UP_TOKENS = 8


def measure(plan: Plan, rounds: Mapping[int, int] | None = None) -> tuple[dict[str, Any], str]:
    """Returns the data (by batch size and arm) and the page."""
    rounds = rounds or (QUICK_ROUNDS if plan.quick else ROUNDS)
    limit, per_benchmark = (24, 6) if plan.quick else (96, 12)
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    template = ChatTemplate(plan.engine.target)
    texts = {prompt.id: template.render(prompt.messages) for prompt in prompts}
    measured: dict[int, list[dict[str, Batch]]] = {size: [] for size in rounds}
    with ExitStack() as stack:
        servers = start_all(plan, stack)
        usable = long_answers(plan, servers[PLAIN], prompts, texts, limit)
        # About 60 ms a step at batch 1 and three times that at 16, three arms: a first guess.
        guess = sum(count * limit * 0.05 * (1 + size / 8) * 3 for size, count in rounds.items())
        progress = Progress(guess)
        weights = {size: (1 + size / 8) for size in rounds}
        total = sum(weights[size] * count for size, count in rounds.items())
        spent = 0.0
        for size, groups in batches(usable, rounds).items():
            # A few tokens first: the kernels of a batch size are made when it is first seen.
            for server in servers.values():
                with running(server):
                    run_batch(server, [texts[p] for p in groups[0]], WARM_UP_TOKENS)
            for index, group in enumerate(groups):
                names = list(servers)
                shift = index % len(names)
                row = {}
                for name in names[shift:] + names[:shift]:
                    with running(servers[name]):
                        row[name] = run_batch(servers[name], [texts[p] for p in group], limit)
                measured[size].append(row)
                spent += weights[size]
                progress.update(
                    f"speed: batch {size}, {index + 1}/{len(groups)} batches", spent / total
                )
        progress.close()
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


class Batch:
    """One batch on one arm: its window and its end-to-end tokens a second."""

    def __init__(self, done: Sequence[Generation]) -> None:
        self.window = full_batch_window(done)
        first, last = min(d.begun_s for d in done), max(d.ended_s for d in done)
        self.tokens = sum(d.completion_tokens for d in done)
        self.seconds = last - first


def start_all(plan: Plan, stack: ExitStack) -> dict[str, Server]:
    """Every arm's server, started one after the other and stopped until it is asked."""
    servers = {}
    arms = plan.arms()
    progress = Progress(30.0 * len(arms))
    for index, arm in enumerate(arms):
        progress.step(f"speed: starting the server of {arm.name}", index / len(arms))
        servers[arm.name] = stack.enter_context(plan.server(arm).start())
        servers[arm.name].pause()
    progress.close()
    return servers


@contextmanager
def running(server: Server) -> Iterator[None]:
    """Let a stopped server run within the block."""
    server.resume()
    try:
        yield
    finally:
        server.pause()


def run_batch(server: Server, texts: Sequence[str], limit: int) -> Batch:
    """Send a batch at once and wait for all of it; every prompt is processed anew."""
    # A prefix that an earlier batch left in the cache would favour whoever comes later.
    server.client.post("/flush_cache")
    with ThreadPoolExecutor(len(texts)) as pool:
        done = pool.map(lambda t: server.client.generate(text=t, max_new_tokens=limit), texts)
        return Batch(list(done))


def long_answers(
    plan: Plan,
    server: Server,
    prompts: Sequence[BenchPrompt],
    texts: Mapping[str, str],
    limit: int,
) -> list[str]:
    """Ids of the prompts whose greedy answer reaches ``limit`` tokens, in order."""
    key = plan.arm_key(plan.arms()[0])
    records = Records(plan.work / "speed" / f"answers-{key}-{limit}.jsonl")
    todo = records.missing(p.id for p in prompts)
    progress = Progress(30 + len(todo) * limit / 60)

    def ask(name: str) -> dict[str, Any]:
        done = server.client.generate(text=texts[name], max_new_tokens=limit)
        return {"id": name, "tokens": done.completion_tokens}

    def keep(row: dict[str, Any]) -> None:
        records.add(row)
        left = len(records.missing(todo))
        progress.update(
            f"speed: looking for long answers, {len(todo) - left}/{len(todo)}",
            1 - left / len(todo),
        )

    with running(server):
        in_parallel(todo, 16, ask, keep)
    progress.close()
    return [p.id for p in prompts if records.rows[p.id]["tokens"] == limit]


def batches(usable: Sequence[str], rounds: Mapping[int, int]) -> dict[int, list[list[str]]]:
    """The batches of each size, drawn from ``usable`` in order and from its start again.

    Raises ValueError where there are fewer usable prompts than one batch needs.
    """
    if len(usable) < max(rounds):
        raise ValueError(
            f"{len(usable)} prompts have an answer that is long enough, and a batch of "
            f"{max(rounds)} needs as many; give more prompts"
        )
    drawn: dict[int, list[list[str]]] = {}
    for size, count in rounds.items():
        drawn[size] = [
            [usable[(index * size + member) % len(usable)] for member in range(size)]
            for index in range(count)
        ]
    return drawn


def summarise(rows: Sequence[Mapping[str, Batch]]) -> dict[str, dict[str, Any]]:
    """The figures of one batch size, by arm, from batches that every arm has measured.

    Batches without a full window on some arm count end to end only. Raises ValueError where no
    batch has a window on all arms.
    """
    whole = [row for row in rows if all(batch.window for batch in row.values())]
    if not whole:
        raise ValueError("no batch decoded together on all arms; raise the token limit")
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


def pooled(batches: Sequence[Batch]) -> Window:
    """The sum of all windows."""
    windows = [batch.window for batch in batches if batch.window is not None]
    return sum(windows[1:], start=windows[0])


def tps(batch: Batch) -> float:
    """Tokens a second in a batch's window."""
    assert batch.window is not None
    return batch.window.tokens_per_s


def step(batch: Batch) -> float:
    """Seconds a step in a batch's window."""
    assert batch.window is not None
    return batch.window.step_s


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
