"""A whole run as its folder holds it: result.json, typed, and the comparison of its arms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.intervals import Interval
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge import metrics
from sgl_entropy_bench.load.judge.compare import (
    AgainstBaseline,
    benchmark_speed,
    by_benchmark,
    paired,
    parity,
    speedup,
)
from sgl_entropy_bench.load.judge.judgement import Result
from sgl_entropy_bench.load.judge.measurement import ServerFacts
from sgl_entropy_bench.load.judge.metrics import measured_of

FORMAT = 2
FILE = "result.json"


@dataclass(frozen=True)
class BaselineCapacity:
    """The rate at which the baseline saturates, of which the loads are shares.

    Attributes:
        concurrency: requests at a time of each rank while it was measured.
        qps: requests a second of all ranks.
        valid: whether that measurement was.
    """

    concurrency: int
    qps: Interval
    valid: bool


@dataclass(frozen=True)
class MergedClient:
    """One of the clients that a merged run comes from."""

    folder: str
    stream: str
    processes: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What ``result.json`` holds.

    Attributes:
        verb: latency, throughput, capacity or speed.
        partial: it was interrupted or broke off.
        baseline: the arm that the others are compared with.
        capacity: where the loads are shares of it.
        probes: results that no table shows, such as that of a capacity.
        judged: the commit whose rules gave the verdicts, where that was done again.
        merged: the clients that this run was merged from.
    """

    verb: str
    partial: bool
    valid: bool
    baseline: str
    results: tuple[Result, ...]
    provenance: dict[str, Any]
    capacity: BaselineCapacity | None = None
    probes: tuple[Result, ...] = ()
    judged: dict[str, Any] | None = None
    merged: tuple[MergedClient, ...] | None = None

    @property
    def servers(self) -> dict[str, ServerFacts]:
        """By arm."""
        return {one.arm: one.measurement.server for one in self.results}

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(one.arm for one in self.results))

    @property
    def loads(self) -> list[str]:
        return list(dict.fromkeys(one.load for one in self.results))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **as_json(self)}

    def write(self, folder: Path) -> None:
        """Write ``result.json`` into ``folder``, whole or not at all."""
        write_whole(folder / FILE, json.dumps(self.to_json(), indent=1) + "\n")


def all_valid(results: Sequence[Result]) -> bool:
    """There are results, and every one is valid."""
    return bool(results) and all(result.valid for result in results)


def compared(
    verb: str,
    results: Sequence[Result],
    records: Callable[[Result], Sequence[RequestRecord]],
    baseline: str,
) -> tuple[Result, ...]:
    """Results with what the verb asks for besides: how each stands beside the baseline arm at the
    same load, and its capacity or its speed by benchmark.

    Args:
        records: all records of a result.
    """
    bases = {result.load: result for result in results if result.arm == baseline}
    return tuple(_compared(verb, one, bases.get(one.load), records) for one in results)


def _compared(
    verb: str,
    result: Result,
    base: Result | None,
    records: Callable[[Result], Sequence[RequestRecord]],
) -> Result:
    if verb == "capacity":
        ranks = result.measurement.server.dp_size or 1
        result = replace(result, capacity=metrics.capacity(records(result), ranks))
    if base is None:
        return result
    here, there = measured_of(records(result)), measured_of(records(base))
    if verb == "speed":
        groups = by_benchmark(here)
        speed = {name: benchmark_speed(some, there) for name, some in groups.items()}
        result = replace(result, speed=speed, speed_all=benchmark_speed(here, there))
    if result.arm == base.arm:
        return result
    windows = result.window is not None and base.window is not None
    against = AgainstBaseline(
        base.arm,
        paired(here, there, metrics.e2e),
        paired(here, there, metrics.ttft),
        parity(here, there) if result.measurement.greedy else None,
        speedup(here, there) if windows else None,
    )
    return replace(result, against=against)
