"""One measurement of one arm: plan, warm up, run, read, judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sgl_entropy_bench.http.record import CUT, Phase, RequestRecord, read_records
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.judge import metrics, verdict
from sgl_entropy_bench.load.run.endpoint import Endpoint, tau_of_counters
from sgl_entropy_bench.load.run.pool import Report, WorkerOutcome, drive
from sgl_entropy_bench.load.run.worker import Planned, Tail, WorkerTask, dealt
from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw, arrivals
from sgl_entropy_bench.load.schedule.workload import Workload


@dataclass(frozen=True)
class LoadPlan:
    """What all arms of a run share.

    Attributes:
        requests: measured ones.
        ramp: requests before them, not measured: the queue fills.
        seed: of arrivals and order.
        share: (i, n): this is the i-th of n clients, on machines of their own, that share a load:
            it takes a part of the prompts and an n-th of the rate, under arrivals of its own.
        start_at: when the run begins, seconds since 1970; None = at once.
    """

    workload: Workload
    output: Output
    requests: int
    ramp: int
    seed: int = 0
    share: tuple[int, int] = (0, 1)
    start_at: float | None = None
    law: ArrivalLaw = field(default_factory=lambda: ArrivalLaw("poisson"))
    processes: int = 1
    timeout_s: float = 600.0
    stall_s: float = 120.0
    slo: metrics.Slo | None = None
    busy_share: float = 0.0

    @property
    def stream(self) -> str:
        """Names this client's arrivals among those of the same seed."""
        return "/".join(map(str, self.share))


@dataclass(frozen=True)
class Measured:
    """One arm at one load.

    Attributes:
        records: all of the run, by schedule; ``measured`` are those that count.
        result: the figures, as JSON takes them.
    """

    records: list[RequestRecord]
    result: dict[str, Any]
    interrupted: KeyboardInterrupt | None

    @property
    def measured(self) -> list[RequestRecord]:
        return [record for record in self.records if record.phase == "measured"]


def open_loop(
    target: Endpoint, plan: LoadPlan, rate: float, folder: Path, name: str, report: Report
) -> Measured:
    """Requests at their scheduled times, whatever the server does: ``ramp`` first, then those
    that are measured, then more of the same until the last measured one has ended.

    Args:
        rate: mean arrivals a second of this client.
        folder, name: where records go: ``folder/name.jsonl``.

    Raises:
        ValueError, ClientError, OSError.
    """
    whole = plan.ramp + plan.requests
    texts = _texts(target, plan)
    times = itertools.islice(arrivals(plan.law, rate, plan.seed, plan.stream), whole)
    planned = [_planned(i, time, texts, plan, plan.ramp) for i, time in enumerate(times)]
    if len(planned) < whole:
        raise ValueError(f"the trace holds {len(planned)} arrivals, {whole} are asked for")
    parts = list(dealt(planned, plan.processes))
    tail = Tail(whole, texts, rate, plan.law, plan.seed, plan.stream, 0, plan.processes)
    out = _run(target, plan, parts, [None] * plan.processes, tail, folder, name, report)
    asked = rate if plan.law.kind != "trace" else None
    return _result(target, plan, out, open_loop=True, extra={"asked_qps": asked})


def closed_loop(
    target: Endpoint, plan: LoadPlan, concurrency: int, folder: Path, name: str, report: Report
) -> Measured:
    """``concurrency`` requests at a time: a new one starts as soon as one ends. The first of each
    place are not measured, and more follow until the last measured one has ended.

    Raises:
        ValueError, ClientError, OSError.
    """
    processes = min(plan.processes, concurrency)
    ramp = max(plan.ramp, concurrency)
    texts = _texts(target, plan)
    whole = ramp + plan.requests
    planned = [_planned(i, 0.0, texts, plan, ramp) for i in range(whole)]
    places = [len(range(i, concurrency, processes)) for i in range(processes)]
    parts = list(dealt(planned, processes))
    tail = Tail(whole, texts, None, plan.law, plan.seed, plan.stream, 0, processes)
    out = _run(target, plan, parts, places, tail, folder, name, report)
    return _result(target, plan, out, open_loop=False, extra={"concurrency": concurrency})


def warm_up(target: Endpoint, plan: LoadPlan, folder: Path, report: Report) -> None:
    """Send the warm-up prompts, four at a time, then empty the prefix cache.

    Raises:
        ClientError: a client process failed.
    """
    if plan.workload.warmup:
        planned = tuple(
            Planned(i, 0.0, "warmup", p.id, p.benchmark, target.text(p))
            for i, p in enumerate(plan.workload.warmup)
        )
        path = folder / "warmup.jsonl"
        path.unlink(missing_ok=True)
        task = _task(target, plan, planned, path, 4, 0)
        outcome = drive([task], len(planned), report)
        if outcome.interrupted is not None:
            raise outcome.interrupted
    target.forget_prefixes()


Texts = tuple[tuple[str, str, str], ...]


def _texts(target: Endpoint, plan: LoadPlan) -> Texts:
    """(prompt, benchmark, what is sent) of the workload; requests cycle through it by index."""
    return tuple((p.id, p.benchmark, target.text(p)) for p in plan.workload.prompts)


def _planned(index: int, time: float, texts: Texts, plan: LoadPlan, ramp: int) -> Planned:
    phase: Phase = "ramp" if index < ramp else "measured"
    return Planned(index, time, phase, *texts[index % len(texts)])


def _task(
    target: Endpoint,
    plan: LoadPlan,
    planned: tuple[Planned, ...],
    path: Path,
    concurrency: int | None,
    process: int,
    tail: Tail | None = None,
) -> WorkerTask:
    return WorkerTask(
        target.url,
        target.api,
        target.model,
        plan.output,
        planned,
        path,
        concurrency,
        process,
        plan.timeout_s,
        plan.stall_s,
        plan.busy_share,
        tail,
    )


@dataclass(frozen=True)
class _Ran:
    outcome: WorkerOutcome
    records: list[RequestRecord]
    tau_counted: float | None


def _run(
    target: Endpoint,
    plan: LoadPlan,
    parts: Sequence[tuple[Planned, ...]],
    places: Sequence[int | None],
    tail: Tail,
    folder: Path,
    name: str,
    report: Callable[..., None],
) -> _Ran:
    path = folder / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    # One file: every process appends whole lines.
    tasks = [
        _task(target, plan, part, path, places[number], number, replace(tail, process=number))
        for number, part in enumerate(parts)
    ]
    before = target.counters()
    outcome = drive(tasks, plan.requests, report, plan.start_at)
    return _Ran(outcome, read_records(path), tau_of_counters(before, target.counters()))


def _result(
    target: Endpoint, plan: LoadPlan, ran: _Ran, *, open_loop: bool, extra: dict[str, Any]
) -> Measured:
    measured = [record for record in ran.records if record.phase == "measured"]
    judged = verdict.judge(
        measured,
        ran.outcome.tallies,
        expected=plan.requests,
        open_loop=open_loop,
        first_use=verdict.first_uses(ran.records),
    )
    result: dict[str, Any] = {"arm": target.name, **extra, **verdict.as_json(judged)}
    if not measured:
        empty = {**result, "requests": 0, "partial": True}
        return Measured(ran.records, empty, ran.outcome.interrupted)
    scheduled, achieved = verdict.rates(measured)
    figures = metrics.summary(measured, plan.slo)
    lags = figures["lag"] or {}
    result |= {
        "partial": len(measured) < plan.requests or any(r.error == CUT for r in measured),
        "interrupted": ran.outcome.interrupted is not None,
        "scheduled_qps": scheduled if open_loop else None,
        "achieved_qps": achieved,
        "lag_p99_s": lags.get("p99") if open_loop else None,
        "client_cpu": [round(t.cpu_s / t.wall_s, 4) for t in ran.outcome.tallies if t.wall_s],
        **figures,
        "tau_counted_by_server": ran.tau_counted,
        "started": ran.outcome.started,
    }
    if not open_loop:
        result["window"] = window(ran.records)
    return Measured(ran.records, result, ran.outcome.interrupted)


def window(records: Sequence[RequestRecord]) -> dict[str, Any] | None:
    """Closed loop: tokens a second from when the first measured request was sent to when the last
    measured one ended, while all places were taken; all requests' tokens in that time count."""
    measured = [r for r in records if r.phase == "measured" and r.sent is not None]
    ended = [r.last for r in measured if r.last is not None]
    if not measured or not ended:
        return None
    start, end = min(r.sent for r in measured if r.sent is not None), max(ended)
    pieces = 24
    edges = [start + (end - start) * i / pieces for i in range(pieces + 1)]
    rates = [
        metrics.tokens_between(records, a, b) / (b - a)
        for a, b in itertools.pairwise(edges)
        if b > a
    ]
    return {"seconds": end - start, "tokens_per_s": sum(rates) / len(rates), "pieces": rates}
