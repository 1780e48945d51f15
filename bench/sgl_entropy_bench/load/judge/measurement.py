"""One measurement of a load run, as it was planned and as it went, besides the records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgl_entropy_bench.http.routes import Output


@dataclass(frozen=True)
class Slo:
    """Limits of one request, in seconds; None = no limit."""

    e2e: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """``e2e=10,ttft=0.5``, as ``--slo`` takes it. Raises ValueError for another form."""
        given: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = 0.0
            if name not in ("e2e", "ttft", "tpot") or not seconds > 0:
                raise ValueError(
                    f"--slo {text}: expected e2e=SECONDS, ttft= or tpot=, separated by commas"
                )
            given[name] = seconds
        return cls(**given)

    def __str__(self) -> str:
        """For people; a file has the numbers themselves."""
        limits = {"e2e": self.e2e, "ttft": self.ttft, "tpot": self.tpot}
        return ", ".join(f"{k} <= {v:g} s" for k, v in limits.items() if v is not None)


@dataclass(frozen=True)
class WorkloadFacts:
    """Which prompts were sent.

    Attributes:
        source: where they came from, for captions.
        prompts: how many all clients of a shared load had together.
        digest: of all of those.
        benchmarks: their names.
        warmup: how many others warmed up the server.
    """

    source: str
    prompts: int
    digest: str
    benchmarks: tuple[str, ...]
    warmup: int = 0


@dataclass(frozen=True)
class ScheduleFacts:
    """When they were sent.

    Attributes:
        arrivals: poisson, gamma, constant or trace.
        variation: coefficient of variation of gamma's gaps.
        seed: of arrivals and order.
        stream: ``I/N``: this was client I of N that shared the load.
        ramp: requests before the measured ones.
        processes: client processes.
    """

    arrivals: str
    seed: int
    ramp: int
    stream: str = "0/1"
    processes: int = 1
    variation: float = 1.0

    def __str__(self) -> str:
        """For people: the law of the arrivals."""
        gamma = self.arrivals == "gamma"
        return f"gamma, CV {self.variation:g}" if gamma else self.arrivals


@dataclass(frozen=True)
class ServerFacts:
    """Who answered, and by which route.

    Attributes:
        version: the server's own; empty where it does not say.
        api: the route that requests took.
        caption: how prompts reached the target, for captions.
        dp_size: data-parallel ranks; None where the server does not say.
        arguments: those of the server's arguments that belong beside a result.
        command: what started it; empty for a server that ran already.
    """

    version: str = ""
    api: str = ""
    caption: str = ""
    dp_size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def fake(self) -> bool:
        """It was the fake server: no result of SGLang."""
        return bool(self.arguments.get("fake"))


@dataclass(frozen=True)
class Measurement:
    """One arm under one load: all that a verdict and the figures rest on, besides the records.

    Attributes:
        load: the label of the load, as in file names and tables.
        expected: how many measured records there should be.
        output: how long answers were and how they were sampled.
        slo: limits for goodput.
        asked_qps: open loop: mean arrivals a second; None for a trace, which has its own.
        concurrency: closed loop: requests at a time; None = open loop.
        started: when the run began, seconds since 1970.
        client_cpu: the share of a core that each client process used.
        tau_counted_by_server: tokens a cycle by the server's own counters.
        cache_emptied: the prefix cache was empty at the start.
        capacity_valid: the load is a share of a measured capacity, which was valid or not.
        clients: how many clients on machines of their own were merged.
        shared_share: share of the measured requests that came while all of those were sending.
    """

    arm: str
    load: str
    expected: int
    workload: WorkloadFacts
    schedule: ScheduleFacts
    server: ServerFacts
    output: Output
    slo: Slo | None = None
    asked_qps: float | None = None
    concurrency: int | None = None
    started: float | None = None
    client_cpu: tuple[float, ...] = ()
    tau_counted_by_server: float | None = None
    cache_emptied: bool = True
    capacity_valid: bool | None = None
    clients: int | None = None
    shared_share: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(arm, load): names a measurement within its run."""
        return self.arm, self.load

    @property
    def greedy(self) -> bool:
        """Answers were the likeliest, so that outputs of two arms can be equal."""
        return self.output.temperature == 0

    @property
    def open_loop(self) -> bool:
        """Arrivals were scheduled, so that being late is a fault."""
        return self.concurrency is None
