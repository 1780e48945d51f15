"""Arms compared side by side: all their servers are up at once and only one of them runs.

The others are stopped like a shell's Ctrl-Z does. What is asked goes to each arm in turn, in
rotating order, before the next is asked, so that whatever else the machine does falls on all arms
alike. Decoding is measured in the window in which the whole batch decodes (``windows``).

Only prompts whose greedy answer reaches the limit are used for batches, found once with an arm that
is exact: a batch that loses members early has no window at its full size.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.typed_json import as_json, from_json
from sgl_entropy_bench.figures.figure_plan import (
    FigurePlan,
    Records,
    benchmark_prompts,
    in_parallel,
)
from sgl_entropy_bench.figures.windows import DecodeWindow, TimedAnswer, full_batch_window
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Generation
from sgl_entropy_bench.server.arms import ServeArm
from sgl_entropy_bench.server.launch import Server

T = TypeVar("T")

WARM_UP_TOKENS = 8


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

    window: DecodeWindow | None
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


# Batches, each by arm.
Rows = Sequence[Mapping[str, PairedBatch]]


class PairedArms:
    """Servers of several arms, and the answers of all of them that an unfinished figure keeps.

    A context; within it the servers are started when they are first needed, and stopped at its end.

    Args:
        arms: the first is exact: the answers that it finds long are as long on all.
        figure: whose name the folder of its records has; ``title``: for progress.
        more: what decides the answers besides arms and ``limit``, the most tokens of an answer.
    """

    def __init__(
        self,
        plan: FigurePlan,
        arms: Sequence[ServeArm],
        limit: int,
        figure: str,
        title: str = "",
        more: str = "",
    ) -> None:
        self.plan, self.arms, self.limit = plan, list(arms), limit
        self.title = title or figure
        parts = [*(plan.arm_key(arm) for arm in arms), str(limit), more]
        key = hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]
        self.records = plan.records(f"{figure}/turns-{key}")
        self._stack, self._servers = ExitStack(), dict[str, Server]()

    def __enter__(self) -> PairedArms:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def servers(self) -> dict[str, Server]:
        """By arm; started one after the other at the first call, and stopped until asked."""
        if not self._servers:
            progress = Progress(30.0 * len(self.arms))
            for index, arm in enumerate(self.arms):
                where = f"{self.title}: starting the server of {arm.name}"
                progress.step(where, index / len(self.arms))
                server = self._stack.enter_context(self.plan.server(arm).start())
                server.pause()
                self._servers[arm.name] = server
            progress.close()
        return self._servers

    def in_turn(self, first: int, ask: Callable[[Server], T]) -> dict[str, T]:
        """What every arm's server answers, asked one at a time from the ``first`` arm on."""
        names = [arm.name for arm in self.arms]
        answers = {}
        for name in names[first:] + names[:first]:
            with running(self.servers()[name]):
                answers[name] = ask(self.servers()[name])
        return {name: answers[name] for name in names}

    def kept(self, key: str, kind: type[T], first: int, ask: Callable[[Server], T]) -> dict[str, T]:
        """``in_turn``, or what the records hold of it: only turns of all arms are kept."""
        if key not in self.records.rows:
            self.records.add({"id": key, "arms": as_json(self.in_turn(first, ask))})
        return {n: from_json(kind, one, key) for n, one in self.records.rows[key]["arms"].items()}

    def batches(
        self, rounds: Mapping[int, int], per_benchmark: int
    ) -> tuple[dict[int, list[dict[str, str]]], int]:
        """The batches of each size, and of how many prompts.

        Args:
            rounds: by batch size, how many batches.
            per_benchmark: prompts of each benchmark that are looked at.

        Returns:
            by size, batches: prompt's id -> its text in the target's template.

        Raises:
            ValueError: fewer prompts with a long answer than one batch needs.
        """
        template = ChatTemplate(self.plan.engine.target)
        prompts = benchmark_prompts(self.plan.prompts, per_benchmark)
        texts = {prompt.id: template.render(prompt.messages) for prompt in prompts}
        usable = self._long_answers(texts)
        return drawn_batches(usable, rounds), len(usable)

    def _long_answers(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Those prompts whose greedy answer reaches the limit, in order."""
        key = self.plan.arm_key(self.plan.arms()[0])
        records = Records(self.plan.work / "speed" / f"answers-{key}-{self.limit}.jsonl")
        if todo := records.missing(texts):
            server = self.servers()[self.arms[0].name]
            progress = Progress(30 + len(todo) * self.limit / 60)

            def ask(name: str) -> dict[str, Any]:
                done = server.client.generate(text=texts[name], max_new_tokens=self.limit)
                return {"id": name, "tokens": done.completion_tokens}

            def keep(row: dict[str, Any]) -> None:
                records.add(row)
                done = len(todo) - len(records.missing(todo))
                where = f"{self.title}: looking for long answers, {done}/{len(todo)}"
                progress.update(where, done / len(todo))

            with running(server):
                in_parallel(todo, 16, ask, keep)
            progress.close()
        long = records.rows
        return {n: text for n, text in texts.items() if long[n]["tokens"] == self.limit}

    def measure(
        self, groups: Mapping[int, Sequence[Mapping[str, str]]]
    ) -> dict[int, list[dict[str, PairedBatch]]]:
        """Each of ``batches`` on every arm."""
        weights = {size: 1 + size / 8 for size in groups}
        total = sum(weights[size] * len(groups[size]) for size in groups)
        # About 60 ms a step at batch 1 and three times that at 16: a first guess.
        progress = Progress(total * self.limit * 0.05 * len(self.arms))
        spent = 0.0
        measured: dict[int, list[dict[str, PairedBatch]]] = {size: [] for size in groups}
        for size, several in groups.items():
            warm = False
            for index, texts in enumerate(several):
                asked = list(texts.values())
                key = f"{size}/{index}: {', '.join(texts)}"
                if not warm and key not in self.records.rows:
                    # The kernels of a batch size are made when it is first seen.
                    self.in_turn(0, partial(run_batch, texts=asked, limit=WARM_UP_TOKENS))
                    warm = True
                ask = partial(run_batch, texts=asked, limit=self.limit)
                measured[size].append(self.kept(key, PairedBatch, index % len(self.arms), ask))
                spent += weights[size]
                where = f"{self.title}: batch {size}, {index + 1}/{len(several)} batches"
                progress.update(where, spent / total)
        progress.close()
        return measured


@contextmanager
def running(server: Server) -> Iterator[None]:
    """Let a stopped server run within the block."""
    server.resume()
    try:
        yield
    finally:
        server.pause()


def answer(server: Server, text: str, limit: int, **sampling: Any) -> TimedAnswer:
    """Ask for one answer; the prompt is processed anew, as a cached prefix may round apart."""
    server.client.forget_prefixes()
    return TimedAnswer.of(server.client.generate(text=text, max_new_tokens=limit, **sampling))


def run_batch(server: Server, texts: Sequence[str], limit: int) -> PairedBatch:
    """Send a batch at once and wait for all of it; every prompt is processed anew."""
    # A prefix that an earlier batch left in the cache would favour whoever comes later.
    server.client.forget_prefixes()
    with ThreadPoolExecutor(len(texts)) as pool:
        done = pool.map(lambda t: server.client.generate(text=t, max_new_tokens=limit), texts)
        return PairedBatch.of(list(done))


def drawn_batches(
    usable: Mapping[str, str], rounds: Mapping[int, int]
) -> dict[int, list[dict[str, str]]]:
    """The batches of each size, drawn from ``usable`` in order and from its start again.

    Raises:
        ValueError: fewer usable prompts than one batch needs.
    """
    if len(usable) < max(rounds):
        raise ValueError(
            f"{len(usable)} prompts have an answer that is long enough, and a batch of "
            f"{max(rounds)} needs as many; give more prompts"
        )
    endless = {size: itertools.cycle(usable.items()) for size in rounds}
    return {
        size: [dict(itertools.islice(endless[size], size)) for _ in range(count)]
        for size, count in rounds.items()
    }


def with_windows(rows: Rows) -> list[Mapping[str, PairedBatch]]:
    """The rows in which every arm's batch decoded together. Raises ValueError for none."""
    whole = [row for row in rows if all(batch.window for batch in row.values())]
    if not whole:
        raise ValueError("no batch decoded together on all arms; raise the token limit")
    return whole


def pooled(several: Sequence[PairedBatch]) -> DecodeWindow:
    """The sum of all windows."""
    windows = [batch.window for batch in several if batch.window is not None]
    return sum(windows[1:], start=windows[0])


def tokens_per_s(several: Sequence[PairedBatch]) -> float:
    """Tokens a second of decoding, pooled over the windows."""
    return pooled(several).tokens_per_s


def step_s(several: Sequence[PairedBatch]) -> float:
    """Seconds a step, pooled over the windows."""
    return pooled(several).step_s


def end_to_end(several: Sequence[PairedBatch]) -> float:
    """Tokens a second, the prompts' processing included."""
    return sum(batch.tokens for batch in several) / sum(batch.seconds for batch in several)


def ratio(
    figure: Callable[[Sequence[PairedBatch]], float], name: str, base: str, rows: Rows
) -> float:
    """A figure of one arm over that of another."""
    over, under = (figure([row[arm] for row in rows]) for arm in (name, base))
    return over / under


def equal_share(rows: Rows, name: str, other: str) -> float:
    """Share of requests that got the same token ids on both arms."""
    pairs = [
        pair for row in rows for pair in zip(row[name].outputs, row[other].outputs, strict=True)
    ]
    return sum(one == another for one, another in pairs) / len(pairs)
