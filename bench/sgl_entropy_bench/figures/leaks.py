"""Do 2,000 hostile requests leave anything in the pools or in memory?

The KV pool is small enough that running requests are retracted. Afterwards the server must hold
no request and no KV slot that is not free or evictable cache, must flush its cache, must answer a
probe as it did at the start, and its memory must not grow from the first quarter on. SGLang's own
check of both pools runs whenever it is idle and ends the server on a leak.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import linear_regression

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.demo import load_prompts
from sgl_entropy_bench.figures.figure_plan import FigurePlan, in_parallel
from sgl_entropy_bench.figures.hostile import REFUSED, Case, cases
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.http.replies import MetaInfo
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server

CONCURRENCY = 12
# Twelve requests at once need two or three times as much.
POOL_TOKENS = 512
# Growth after the first quarter that still counts as flat: allocators settle for a while.
FLAT_SHARE = 0.03
SAMPLE_EVERY = 50
IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class InUse:
    """Requests, and KV slots that are neither free nor evictable cache."""

    requests: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.tokens} KV slots"


@dataclass(frozen=True)
class Growth:
    """Allocated memory from the first quarter of the requests on: in all, and bytes a request."""

    growth_share: float
    bytes_per_request: int
    memory_flat: bool


@dataclass(frozen=True)
class LeakRow(Growth):
    """What one arm's server was left with.

    Attributes:
        outcomes: requests by kind and outcome.
        unexpected: outcomes that a case must not have.
        retractions: requests that were retracted, from the server's log.
        leak_reports: of SGLang's own idle check.
        probe_unchanged: one greedy answer before and after is the same.
        memory_mib: (requests finished, MiB allocated).
    """

    seconds: float
    outcomes: Mapping[str, int]
    unexpected: Sequence[str]
    retractions: int
    load_at_start: InUse
    load_at_end: InUse
    server_alive: bool
    leak_reports: int
    probe_unchanged: bool
    memory_mib: Sequence[tuple[int, float]]
    passed: bool


@dataclass(frozen=True)
class LeaksFigure:
    """The whole figure, by arm."""

    requests: int
    pool_tokens: int
    arms: Mapping[str, LeakRow]


@dataclass
class Outcomes:
    """What became of the cases, and the server's memory (bytes) as they went by."""

    counts: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def add(self, case: Case, result: str) -> int:
        """Returns how many cases have ended."""
        self.counts[f"{case.kind}: {result}"] += 1
        if not expected(case, result):
            self.unexpected.append(f"request {case.index} ({case.kind}): {result}")
        return self.counts.total()


def measure(plan: FigurePlan, arm_names: tuple[str, ...] = ("edsd",)) -> tuple[LeaksFigure, str]:
    """Returns the figure and its page."""
    count = 120 if plan.quick else 2000
    arms = [arm for arm in plan.arms() if arm.name in arm_names]
    figure = LeaksFigure(count, POOL_TOKENS, {arm.name: run_arm(plan, arm, count) for arm in arms})
    return figure, page(figure)


def run_arm(plan: FigurePlan, arm: ServeArm, count: int) -> LeakRow:
    """All cases against one arm's server."""
    engine = small_pool(plan.engine)
    template = ChatTemplate(engine.target)
    texts = [template.render(p.messages) for p in load_prompts() if p.kind != "long context"]
    with plan.server(arm, engine).start() as server:
        probe, start = greedy(server, texts[0]), idle_load(server.client)
        begun = time.monotonic()
        outcomes = send_cases(server, engine.target, texts, count, f"leaks: {arm.name}")
        seconds = time.monotonic() - begun
        end = idle_load(server.client)
        server.client.forget_prefixes()
        unchanged = greedy(server, texts[0]) == probe
        time.sleep(2.0)  # longer than the interval of the idle check
        log, alive = server.log_text(), server.alive() and server.client.healthy()
    growth = flatness(outcomes.memory)
    retractions = sum(map(int, re.findall(r"#retracted_reqs: (\d+)", log)))
    reports = len(re.findall(r"memory leak detected", log))
    clean = alive and unchanged and growth.memory_flat and end == InUse(0, 0)
    return LeakRow(
        **vars(growth),
        seconds=round(seconds, 1),
        outcomes=dict(sorted(outcomes.counts.items())),
        unexpected=outcomes.unexpected,
        retractions=retractions,
        load_at_start=start,
        load_at_end=end,
        server_alive=alive,
        leak_reports=reports,
        probe_unchanged=unchanged,
        memory_mib=[(int(n), round(size / 2**20, 1)) for n, size in outcomes.memory],
        # Without a retraction the pool was not small enough to show anything.
        passed=clean and not outcomes.unexpected and not reports and retractions > 0,
    )


def small_pool(engine: Engine) -> Engine:
    """An engine whose KV pool is too small for its requests."""
    return replace(
        engine,
        max_total_tokens=POOL_TOKENS,
        max_running_requests=CONCURRENCY,
        # Optimistic admission: requests are let in that later do not fit, and are retracted.
        extra_flags=(*engine.extra_flags, "--schedule-conservativeness", "0.01"),
    )


def greedy(server: Server, text: str) -> tuple[int, ...]:
    """The token ids of a short answer."""
    return server.client.generate(text=text, max_new_tokens=16).output_ids


def send_cases(
    server: Server, target: Path, texts: Sequence[str], count: int, title: str
) -> Outcomes:
    """All cases, ``CONCURRENCY`` at a time."""
    vocabulary = int(json.loads((target / "config.json").read_text())["vocab_size"])
    progress = Progress(60 + count * 0.4)
    outcomes = Outcomes()

    def done(ended: tuple[Case, str]) -> None:
        finished = outcomes.add(*ended)
        if finished % SAMPLE_EVERY == 0 or finished == count:
            outcomes.memory.append((finished, server.allocated_bytes()))
        progress.update(f"{title}: {finished}/{count} requests", finished / count)

    in_parallel(
        cases(texts, count, vocabulary),
        CONCURRENCY,
        lambda case: (case, run_case(server, case)),
        done,
    )
    progress.close()
    return outcomes


def run_case(server: Server, case: Case) -> str:
    """One request as its client behaves; ``finished: REASON``, ``left``, ``STATUS`` or an error.

    An aborted request ends its stream with an event of its own, or with an error.
    """
    client = server.client
    seen = 0
    reason = ""
    try:
        if case.kind in REFUSED:
            # Not streamed: a stream has sent its status before the request is looked at.
            client.post("/generate", case.body)
            return "accepted"
        with contextlib.closing(client.events("/generate", case.body)) as events:
            for event in events:
                seen += 1
                reason = MetaInfo.of(event).finish
                if case.leave_after is not None and seen == case.leave_after:
                    if not case.by_abort:
                        return "left"
                    # From another thread, as another client would.
                    threading.Thread(
                        target=client.post, args=("/abort_request", {"rid": case.rid})
                    ).start()
    except ServerError as error:
        if case.by_abort and seen:
            return "finished: abort"
        return str(error.status) if error.status else str(error)
    return f"finished: {reason}"


def expected(case: Case, result: str) -> bool:
    """Whether this is what had to come of the case."""
    if case.kind in REFUSED:
        return result == str(REFUSED[case.kind])
    if case.leave_after is not None:
        # An answer may be finished before its client leaves.
        return result in ("left", "finished: abort", "finished: stop", "finished: length")
    return result in ("finished: stop", "finished: length")


def idle_load(client: Client) -> InUse:
    """What is in use once the server is idle, or after ``IDLE_TIMEOUT_S``."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while True:
        ranks = client.get("/get_load")
        load = InUse(
            sum(rank["num_reqs"] for rank in ranks), sum(rank["num_tokens"] for rank in ranks)
        )
        if load == InUse(0, 0) or time.monotonic() > deadline:
            return load
        time.sleep(0.2)


def flatness(memory: Sequence[tuple[float, float]]) -> Growth:
    """From (requests finished, bytes).

    Raises:
        ValueError: too few samples.
    """
    settled = memory[len(memory) // 4 :]
    if len(settled) < 2:
        raise ValueError("too few memory samples to judge growth")
    first, last = settled[0][1], settled[-1][1]
    share = (last - first) / first
    slope = linear_regression(*zip(*settled, strict=True)).slope
    return Growth(round(share, 5), round(slope), share <= FLAT_SHARE)


def page(figure: LeaksFigure) -> str:
    """The figure as Markdown."""
    parts = [
        "# Leaks: hostile requests, and what they leave",
        f"{figure.requests} requests, {CONCURRENCY} at a time, a KV pool of "
        f"{figure.pool_tokens} tokens. In use at start and end: requests and KV slots that are "
        "neither free nor evictable cache.",
    ]
    for name, row in figure.arms.items():
        facts = [
            ["verdict", "nothing left behind" if row.passed else "NOT CLEAN"],
            ["in use at the start", str(row.load_at_start)],
            ["in use at the end", str(row.load_at_end)],
            ["requests retracted", str(row.retractions)],
            ["leaks reported by SGLang's idle check", str(row.leak_reports)],
            ["server alive, probe answered as at the start", str(row.probe_unchanged)],
            ["allocated memory, first quarter to end", f"{row.growth_share:+.2%}"],
            ["allocated memory, bytes a request (slope)", str(row.bytes_per_request)],
            ["seconds", str(row.seconds)],
            *([outcome, str(number)] for outcome, number in row.outcomes.items()),
        ]
        parts += [f"## {name}", markdown_table(("what", "found"), facts)]
        parts += ["Unexpected:\n\n" + "\n".join(f"- {w}" for w in row.unexpected[:20])] * bool(
            row.unexpected
        )
    return "\n\n".join(parts)
