"""One measurement of one arm: plan the requests, warm up, run, read the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sgl_entropy_bench.http.record import RequestRecord, read_records
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.judge.folders import records_file
from sgl_entropy_bench.load.judge.measurement import (
    Measurement,
    ScheduleFacts,
    Slo,
    WorkloadFacts,
)
from sgl_entropy_bench.load.run.endpoint import Endpoint, tau_of_counters
from sgl_entropy_bench.load.run.pool import Report, WorkerOutcome, drive
from sgl_entropy_bench.load.run.worker import Planned, RequestStream, WorkerTask
from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw, schedule
from sgl_entropy_bench.load.schedule.workload import Workload


@dataclass(frozen=True)
class Load:
    """What one measurement puts on a server: requests a second, or requests at a time.

    Attributes:
        label: for file names and tables; a rate may be one of a rank, or a share of a capacity.
        rate: open loop: mean arrivals a second of this client.
        concurrency: closed loop; exactly one of the two is given.
    """

    label: str
    rate: float | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise ValueError(f"load {self.label}: expected either a rate or a concurrency")


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
        timeout_s, stall_s, busy_share: as in ``WorkerTask``.
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
    slo: Slo | None = None
    busy_share: float = 0.0

    @property
    def stream(self) -> str:
        """Names this client's arrivals among those of the same seed."""
        return "/".join(map(str, self.share))

    def workload_facts(self) -> WorkloadFacts:
        work = self.workload
        warmup = len(work.warmup)
        return WorkloadFacts(work.source, work.whole, work.digest, work.benchmarks, warmup)

    def schedule_facts(self) -> ScheduleFacts:
        return ScheduleFacts(
            self.law.kind, self.seed, self.ramp, self.stream, self.processes, self.law.variation
        )


@dataclass(frozen=True)
class Ran:
    """How a run of one arm under one load went.

    Attributes:
        records: all of them, by schedule.
        tau_counted: tokens a cycle by the server's own counters, while it lasted.
    """

    records: list[RequestRecord]
    outcome: WorkerOutcome
    tau_counted: float | None


def measurement_of(
    endpoint: Endpoint,
    plan: LoadPlan,
    load: Load,
    ran: Ran,
    *,
    command: str = "",
    cache_emptied: bool = True,
    capacity_valid: bool | None = None,
) -> Measurement:
    """What was measured, for ``judge``; ``command`` started the server."""
    outcome = ran.outcome
    began = any(record.phase == "measured" for record in ran.records)
    return Measurement(
        arm=endpoint.name,
        load=load.label,
        expected=plan.requests,
        workload=plan.workload_facts(),
        schedule=plan.schedule_facts(),
        server=endpoint.facts(command),
        output=plan.output,
        slo=plan.slo,
        asked_qps=None if plan.law.kind == "trace" else load.rate,
        concurrency=load.concurrency,
        started=outcome.started if began else None,
        client_cpu=tuple(round(t.cpu_s / t.wall_s, 4) for t in outcome.tallies if t.wall_s),
        tau_counted_by_server=ran.tau_counted,
        cache_emptied=cache_emptied,
        capacity_valid=capacity_valid,
    )


def run_load(endpoint: Endpoint, plan: LoadPlan, load: Load, folder: Path, report: Report) -> Ran:
    """Put ``load`` on a server.

    Open loop: requests at their scheduled times, whatever the server does: ``ramp`` first, then
    those that are measured, then more of the same until the last measured one has ended. Closed
    loop: a fixed number of requests at a time, a new one as soon as one ends. The first request
    of each place is not measured, and more requests follow the last measured one as well.

    Args:
        folder: where records go.

    Raises:
        ValueError: a trace with too few arrivals.
        ClientError: a client process failed.
        OSError: the records cannot be written or read.
    """
    processes, ramp = plan.processes, plan.ramp
    places: list[int | None] = [None] * processes
    if load.concurrency is not None:
        processes = min(processes, load.concurrency)
        ramp = max(ramp, load.concurrency)
        places = [len(range(i, load.concurrency, processes)) for i in range(processes)]
    if load.rate is not None:
        schedule(plan.law, load.rate, ramp + plan.requests, plan.seed, plan.stream)  # long enough
    texts = tuple((p.id, p.benchmark, endpoint.text(p)) for p in plan.workload.prompts)
    whole = RequestStream(
        texts, ramp, plan.requests, load.rate, plan.law, plan.seed, plan.stream, 0, processes
    )
    path = records_file(folder, endpoint.name, load.label)
    path.unlink(missing_ok=True)
    # All processes append whole lines to one file.
    tasks = [
        _task(endpoint, plan, replace(whole, process=number), path, places[number], number)
        for number in range(processes)
    ]
    before = endpoint.counters()
    outcome = drive(tasks, plan.requests, report, plan.start_at)
    return Ran(read_records(path), outcome, tau_of_counters(before, endpoint.counters()))


def warm_up(endpoint: Endpoint, plan: LoadPlan, folder: Path, report: Report) -> None:
    """Send the warm-up prompts, four at a time, then empty the prefix cache.

    Raises:
        ClientError: a client process failed.
    """
    if plan.workload.warmup:
        planned = tuple(
            Planned(i, 0.0, "warmup", p.id, p.benchmark, endpoint.text(p))
            for i, p in enumerate(plan.workload.warmup)
        )
        path = folder / "warmup.jsonl"
        path.unlink(missing_ok=True)
        task = _task(endpoint, plan, planned, path, 4, 0)
        outcome = drive([task], len(planned), report)
        if outcome.interrupted is not None:
            raise outcome.interrupted
    endpoint.forget_prefixes()


def _task(
    endpoint: Endpoint,
    plan: LoadPlan,
    requests: Iterable[Planned],
    path: Path,
    concurrency: int | None,
    process: int,
) -> WorkerTask:
    return WorkerTask(
        endpoint.url,
        endpoint.api,
        endpoint.model,
        plan.output,
        requests,
        path,
        concurrency,
        process,
        plan.timeout_s,
        plan.stall_s,
        plan.busy_share,
    )
