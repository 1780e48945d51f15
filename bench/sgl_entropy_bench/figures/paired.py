"""Arms compared batch by batch: all their servers are up at once and only one of them runs.

The others are stopped like a shell's Ctrl-Z does. Every batch of prompts goes to each arm in turn,
in rotating order, before the next batch, so that whatever else the machine does falls on all arms
alike. Decoding is measured in the window in which the whole batch decodes (``windows``).

Only prompts whose greedy answer reaches the limit are used, found once with an arm that is exact:
a batch that loses members early has no window at its full size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sgl_entropy.base.progress import Progress
from sgl_entropy_bench.figures.figure_plan import BenchPrompt, FigurePlan, Records, in_parallel
from sgl_entropy_bench.figures.windows import Window, full_batch_window
from sgl_entropy_bench.http.client import Generation
from sgl_entropy_bench.server.arms import ServeArm
from sgl_entropy_bench.server.launch import Server

WARM_UP_TOKENS = 8
# The id of the record that holds one finished part of a figure whose other parts are missing.
FINISHED = "finished"


@dataclass(frozen=True)
class PairedBatch:
    """One batch on one arm.

    Attributes:
        window: None where the requests hardly overlap.
        tokens, seconds: end to end, of all its requests.
        cycles, verified, emitted: draft-verify cycles, drafted tokens that were verified in them,
            and tokens that came out of them; 0 without speculation.
        outputs: each request's token ids.
    """

    window: Window | None
    tokens: int
    seconds: float
    cycles: int
    verified: int
    emitted: int
    outputs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, done: Sequence[Generation]) -> PairedBatch:
        """From a batch's finished requests."""
        return cls(
            full_batch_window(done),
            sum(d.completion_tokens for d in done),
            max(d.ended_s for d in done) - min(d.begun_s for d in done),
            sum(d.cycles for d in done),
            sum(d.drafted for d in done),
            sum(d.emitted for d in done),
            tuple(d.output_ids for d in done),
        )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PairedBatch:
        """The reverse of ``dataclasses.asdict``, also after JSON."""
        window = record["window"] and Window(**record["window"])
        return cls(**{**record, "window": window, "outputs": tuple(map(tuple, record["outputs"]))})


def start_all(
    plan: FigurePlan, stack: ExitStack, arms: Sequence[ServeArm], title: str = "speed"
) -> dict[str, Server]:
    """Every arm's server, started one after the other and stopped until it is asked."""
    servers = {}
    progress = Progress(30.0 * len(arms))
    for index, arm in enumerate(arms):
        progress.step(f"{title}: starting the server of {arm.name}", index / len(arms))
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


def run_batch(server: Server, texts: Sequence[str], limit: int) -> PairedBatch:
    """Send a batch at once and wait for all of it; every prompt is processed anew."""
    # A prefix that an earlier batch left in the cache would favour whoever comes later.
    server.client.forget_prefixes()
    with ThreadPoolExecutor(len(texts)) as pool:
        done = pool.map(lambda t: server.client.generate(text=t, max_new_tokens=limit), texts)
        return PairedBatch.of(list(done))


def long_answers(
    plan: FigurePlan,
    server: Server,
    prompts: Sequence[BenchPrompt],
    texts: Mapping[str, str],
    limit: int,
    title: str = "speed",
) -> list[str]:
    """Ids of the prompts whose greedy answer reaches ``limit`` tokens, in order.

    ``server``: of any arm that is exact; what it finds holds for all of them.
    """
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
            f"{title}: looking for long answers, {len(todo) - left}/{len(todo)}",
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


def kept(
    plan: FigurePlan, title: str, arms: Sequence[ServeArm], limit: int, more: str = ""
) -> Records:
    """Where finished batches of an unfinished figure wait; ``more``: what else decides them."""
    parts = [plan.arm_key(arm) for arm in arms] + [str(limit), more]
    key = hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]
    return Records(plan.work / title / f"batches-{key}.jsonl")


def take_turns(
    servers: Mapping[str, Server],
    groups: Mapping[int, Sequence[Sequence[str]]],
    texts: Mapping[str, str],
    limit: int,
    title: str,
    records: Records | None = None,
) -> dict[int, list[dict[str, PairedBatch]]]:
    """Each batch of each size on every arm.

    Args:
        groups: by batch size, batches of keys of ``texts``.
        records: batches that all arms have finished are kept there, and taken from there.
    """
    weights = {size: 1 + size / 8 for size in groups}
    total = sum(weights[size] * len(groups[size]) for size in groups)
    # About 60 ms a step at batch 1 and three times that at 16: a first guess.
    progress = Progress(total * limit * 0.05 * len(servers))
    names, spent = list(servers), 0.0
    measured: dict[int, list[dict[str, PairedBatch]]] = {size: [] for size in groups}
    for size, batches_of_size in groups.items():
        warm = False
        for index, group in enumerate(batches_of_size):
            key = f"{size}/{index}: {', '.join(group)}"
            asked = [texts[name] for name in group]
            row: dict[str, PairedBatch] = {}
            if records is not None and key in records.rows:
                row = {n: PairedBatch.from_dict(b) for n, b in records.rows[key]["arms"].items()}
            else:
                if not warm:
                    warm_up(servers, asked)
                warm = True
                shift = index % len(names)
                for name in names[shift:] + names[:shift]:
                    with running(servers[name]):
                        row[name] = run_batch(servers[name], asked, limit)
                if records is not None:
                    records.add({"id": key, "arms": {n: asdict(b) for n, b in row.items()}})
            measured[size].append({name: row[name] for name in names})
            spent += weights[size]
            progress.update(
                f"{title}: batch {size}, {index + 1}/{len(batches_of_size)} batches", spent / total
            )
    progress.close()
    return measured


def warm_up(servers: Mapping[str, Server], texts: Sequence[str]) -> None:
    """A few tokens of a batch: the kernels of a batch size are made when it is first seen."""
    for server in servers.values():
        with running(server):
            run_batch(server, texts, WARM_UP_TOKENS)


def with_windows(rows: Sequence[Mapping[str, PairedBatch]]) -> list[Mapping[str, PairedBatch]]:
    """The rows in which every arm's batch decoded together. Raises ValueError for none."""
    whole = [row for row in rows if all(batch.window for batch in row.values())]
    if not whole:
        raise ValueError("no batch decoded together on all arms; raise the token limit")
    return whole


def pooled(several: Sequence[PairedBatch]) -> Window:
    """The sum of all windows."""
    windows = [batch.window for batch in several if batch.window is not None]
    return sum(windows[1:], start=windows[0])


def tps(batch: PairedBatch) -> float:
    """Tokens a second in a batch's window."""
    assert batch.window is not None
    return batch.window.tokens_per_s


def step(batch: PairedBatch) -> float:
    """Seconds a step in a batch's window."""
    assert batch.window is not None
    return batch.window.step_s


def equal_share(rows: Sequence[Mapping[str, PairedBatch]], name: str, other: str) -> float:
    """Share of requests that got the same token ids on both arms."""
    pairs = [
        pair for row in rows for pair in zip(row[name].outputs, row[other].outputs, strict=True)
    ]
    return sum(one == another for one, another in pairs) / len(pairs)
