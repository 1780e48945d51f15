"""A comparison of every arm at every load, resumable, with all results in one folder.

``OUT/result.json`` holds the figures, ``OUT/NAME.jsonl`` the records of one arm at one load.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sgl_entropy.base.provenance import provenance
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.http.record import RequestRecord, read_records
from sgl_entropy_bench.load.judge.folders import read_run, records_file
from sgl_entropy_bench.load.judge.judgement import Result, judge
from sgl_entropy_bench.load.judge.run_result import (
    FILE,
    BaselineCapacity,
    RunResult,
    all_valid,
    compared,
)
from sgl_entropy_bench.load.run.arms import LoadArm, opened
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.load.run.measure import Load, LoadPlan, measurement_of, run_load, warm_up
from sgl_entropy_bench.load.run.progress import LoadProgress


@dataclass
class Campaign:
    """Measures arms under loads and keeps the results.

    Attributes:
        verb: latency, throughput, capacity or speed.
        arms: the one named ``none``, else the first, is the baseline.
        out: the folder of results; made if missing.
        resume: keep results of the same settings that the folder already holds.
        capacity: that of the baseline, once it was measured for loads that are shares of it.
        probes: results that no table shows, such as the capacity run; kept for ``resume``.
    """

    verb: str
    plan: LoadPlan
    arms: tuple[LoadArm, ...]
    out: Path
    api: str = "auto"
    tokenizer: Path | None = None
    resume: bool = False
    capacity: BaselineCapacity | None = None
    results: list[Result] = field(default_factory=list)
    probes: list[Result] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        path = self.out / FILE
        if path.exists() and not self.resume:
            raise ValueError(
                f"--out {self.out} holds results already: name another folder, or --resume"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        # Taken at the start, before the machine carries our own load.
        self._provenance = provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0))
        self._warm: set[str] = set()
        # Results of an earlier run; those that are not measured again stay in the file.
        self._earlier: list[Result] = []
        try:
            before = read_run(self.out)
            self._earlier = [*before.results, *before.probes]
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise ValueError(f"{path} cannot be resumed: {error}") from None

    @property
    def baseline(self) -> str:
        names = [arm.name for arm in self.arms]
        return "none" if "none" in names else names[0]

    def arm(self, name: str) -> LoadArm:
        return next(arm for arm in self.arms if arm.name == name)

    @contextlib.contextmanager
    def serving(self, arm: LoadArm) -> Iterator[Endpoint]:
        """The server of ``arm``, running until the block ends."""
        progress = LoadProgress(f"{arm.name}: server starts")
        log = self.out / f"{arm.name}.server.log"
        if arm.command:
            self._warm.discard(arm.name)  # a new server
        with opened(arm, self.api, self.tokenizer, log, progress.waiting) as endpoint:
            progress.close()
            yield endpoint

    def measure(self, endpoint: Endpoint, load: Load, plan: LoadPlan | None = None) -> Result:
        """Measure one arm at one load; its result also joins ``results``.

        Raises:
            ClientError, ValueError, OSError: nothing measured; what came before stays.
        """
        plan = plan or self.plan
        name = endpoint.name
        key = self._key(endpoint, load, plan)
        if self.resume and (earlier := self._earlier_result(name, load, key)) is not None:
            self.results.append(earlier)
            return earlier
        if name not in self._warm:
            with LoadProgress(f"{name}: warm-up") as progress:
                warm_up(endpoint, plan, self.out, progress.report)
            self._warm.add(name)
        emptied = endpoint.forget_prefixes()
        with LoadProgress(f"{name} at {load.label}", plan.requests) as progress:
            ran = run_load(endpoint, plan, load, self.out, progress.report)
        measurement = measurement_of(
            endpoint,
            plan,
            load,
            ran,
            command=self.arm(name).shown(),
            cache_emptied=emptied,
            capacity_valid=None if self.capacity is None else self.capacity.valid,
        )
        result = replace(judge(measurement, ran.records), key=key)
        self.results.append(result)
        interrupted = ran.outcome.interrupted
        self.interrupted = self.interrupted or interrupted is not None
        self.write()
        if interrupted is not None:
            raise interrupted
        told = "valid" if result.valid else "invalid: " + "; ".join(result.verdict.reasons)
        progress.say(f"{name} at {load.label}: {told}")
        return result

    def measure_all(self, loads: Callable[[Endpoint], Sequence[Load]]) -> None:
        """Measure every arm at every load, compare the arms, write the result. Running servers
        take turns at each load; servers that have to be started are finished one after the other.

        Raises: as ``measure``.
        """
        if all(arm.url for arm in self.arms):
            with contextlib.ExitStack() as stack:
                endpoints = [stack.enter_context(self.serving(arm)) for arm in self.arms]
                for turn in zip(*map(loads, endpoints), strict=True):
                    for endpoint, load in zip(endpoints, turn, strict=True):
                        self.measure(endpoint, load)
        else:
            for arm in self.arms:
                with self.serving(arm) as endpoint:
                    for load in loads(endpoint):
                        self.measure(endpoint, load)
        self.compare()
        self.write()

    def _key(self, endpoint: Endpoint, load: Load, plan: LoadPlan) -> str:
        arm = self.arm(endpoint.name)
        what = [
            as_json(endpoint.facts(arm.shown())),
            [arm.url, *arm.command, sorted(arm.environment.items())],
            endpoint.text(plan.workload.prompts[0]),
            as_json(load),
            [prompt.text for prompt in plan.workload.prompts],
            as_json(plan.output),
            as_json(plan.schedule_facts()),
            list(plan.law.trace),
            plan.requests,
            as_json(plan.slo),
        ]
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]

    def _earlier_result(self, name: str, load: Load, key: str) -> Result | None:
        """A whole result of the same arm, load and settings."""
        for one in self._earlier:
            if one.key == key and not one.partial:
                return one if records_file(self.out, name, load.label).is_file() else None
        return None

    def records(self, result: Result) -> list[RequestRecord]:
        """All records behind a result, also those that are not measured."""
        return read_records(records_file(self.out, result.arm, result.load))

    def compare(self) -> None:
        """Add to each result how it stands against the baseline at the same load."""
        self.results[:] = compared(self.verb, self.results, self.records, self.baseline)

    def report(self) -> RunResult:
        """The whole result, as ``result.json`` holds it."""
        return RunResult(
            verb=self.verb,
            partial=self.interrupted,
            valid=all_valid(self.results),
            baseline=self.baseline,
            capacity=self.capacity,
            results=tuple(self.results),
            probes=tuple(self.probes),
            provenance=self._provenance,
        )

    def write(self) -> None:
        """Write ``result.json``, whole or not at all."""
        done = {result.measurement.key for result in [*self.results, *self.probes]}
        earlier = [result for result in self._earlier if result.measurement.key not in done]
        replace(self.report(), results=(*self.results, *earlier)).write(self.out)
