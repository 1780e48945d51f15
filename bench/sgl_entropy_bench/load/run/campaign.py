"""A whole comparison: every arm at every load, resumable, with all results in one folder.

``OUT/result.json`` holds the figures, ``OUT/NAME.jsonl`` the records of one arm at one load.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sgl_entropy.base.provenance import provenance
from sgl_entropy_bench.http.record import RequestRecord, read_records
from sgl_entropy_bench.load.judge import compare
from sgl_entropy_bench.load.judge.folders import FORMAT
from sgl_entropy_bench.load.run.arms import LoadArm, opened
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.load.run.measure import LoadPlan, Measured, closed_loop, open_loop, warm_up
from sgl_entropy_bench.load.run.progress import LoadProgress


@dataclass(frozen=True)
class Load:
    """What one measurement puts on a server: requests a second, or requests at a time."""

    rate: float | None = None
    concurrency: int | None = None
    # Of the label in file names and tables; a rate may be per rank, or a share of a capacity.
    label: str = ""


@dataclass
class Campaign:
    """Measures and keeps what was measured.

    Attributes:
        verb: latency, throughput, ...; of the result file.
        arms: the first whose name is none, else the first, is what others are compared with.
        out: the folder of results; made if missing.
        resume: take what the folder already holds of the same settings.
        probes: results that no table shows, as of a capacity; kept for ``resume``.
    """

    verb: str
    plan: LoadPlan
    arms: tuple[LoadArm, ...]
    out: Path
    api: str = "auto"
    tokenizer: Path | None = None
    resume: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self) -> None:
        path = self.out / "result.json"
        if path.exists() and not self.resume:
            raise ValueError(
                f"--out {self.out} holds results already: name another folder, or --resume"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        self._warm: set[str] = set()
        self._facts: dict[str, list[Any]] = {}
        # Of an earlier run of this folder; those that are not reached again stay in the file.
        self._earlier: list[dict[str, Any]] = []
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            self._earlier = [*held["results"], *held.get("probes", [])]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be resumed: {error!r}") from None

    @property
    def baseline(self) -> str:
        names = [arm.name for arm in self.arms]
        return "none" if "none" in names else names[0]

    @contextlib.contextmanager
    def serving(self, spec: LoadArm) -> Iterator[Endpoint]:
        """The arm's server, for as long as the block lasts."""
        progress = LoadProgress(f"{spec.name}: server starts")
        log = self.out / f"{spec.name}.server.log"
        if spec.command:
            self._warm.discard(spec.name)  # a new server
        with opened(spec, self.api, self.tokenizer, log, progress.waiting) as target:
            progress.close()
            self.servers[spec.name] = {
                "version": target.version(),
                "api": target.api,
                "caption": target.caption,
                "dp_size": target.ranks,
                "arguments": target.arguments(),
                "command": spec.shown(),
            }
            self._facts[spec.name] = [spec.url, *spec.command, sorted(spec.environment.items())]
            yield target

    def measure(self, target: Endpoint, load: Load, plan: LoadPlan | None = None) -> dict[str, Any]:
        """One arm at one load; its result also joins ``results``.

        Raises:
            ClientError, ValueError, OSError: nothing measured; what came before stays.
        """
        plan = plan or self.plan
        name = f"{target.name}-{load.label}"
        key = self._key(target, load, plan)
        if self.resume and (held := self._held(name, key)) is not None:
            self.results.append(held)
            return held
        if target.name not in self._warm:
            with LoadProgress(f"{target.name}: warm-up") as progress:
                warm_up(target, plan, self.out, progress.report)
            self._warm.add(target.name)
        flushed = target.forget_prefixes()
        total = plan.requests
        with LoadProgress(f"{target.name} at {load.label}", total) as progress:
            if load.rate is not None:
                done = open_loop(target, plan, load.rate, self.out, name, progress.report)
            else:
                assert load.concurrency is not None
                done = closed_loop(target, plan, load.concurrency, self.out, name, progress.report)
        result = self._finished(done, load, key, flushed)
        progress.say(
            f"{target.name} at {load.label}: "
            + ("valid" if result["valid"] else "invalid: " + "; ".join(result["reasons"]))
        )
        return result

    def _finished(self, done: Measured, load: Load, key: str, flushed: bool) -> dict[str, Any]:
        result = {**done.result, "load": load.label, "key": key}
        if not flushed:
            result["notes"] = [*result.get("notes", []), "the prefix cache could not be emptied"]
        self.results.append(result)
        self.interrupted = self.interrupted or done.interrupted is not None
        self.write()
        if done.interrupted is not None:
            raise done.interrupted
        return result

    def _key(self, target: Endpoint, load: Load, plan: LoadPlan) -> str:
        what = {
            "target": [target.name, target.api, target.version(), target.arguments()],
            "server": self._facts[target.name],
            "text": target.text(plan.workload.prompts[0]),
            "load": asdict(load),
            "prompts": [prompt.text for prompt in plan.workload.prompts],
            "plan": [
                str(plan.output),
                dict(plan.output.sampling),
                plan.output.stream,
                plan.requests,
                plan.ramp,
                plan.seed,
                plan.stream,
                str(plan.law),
                plan.law.trace,
                str(plan.slo),
                plan.processes,
            ],
        }
        return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:16]

    def _held(self, name: str, key: str) -> dict[str, Any] | None:
        """A whole result of the same arm, load and settings."""
        for one in self._earlier:
            if one.get("key") == key and not one.get("partial", True):
                return one if (self.out / f"{name}.jsonl").is_file() else None
        return None

    def records(self, result: dict[str, Any]) -> list[RequestRecord]:
        """The measured records behind a result."""
        return [record for record in self.every_record(result) if record.phase == "measured"]

    def every_record(self, result: dict[str, Any]) -> list[RequestRecord]:
        """All records behind a result, also those that are not measured."""
        return read_records(self.out / f"{result['arm']}-{result['load']}.jsonl")

    def compare(self) -> None:
        """Add to each result how it stands against the baseline at the same load."""
        greedy = self.plan.output.temperature == 0
        compare.against_baseline(self.results, self.records, self.baseline, greedy)

    def report(self) -> dict[str, Any]:
        """The whole result, as ``result.json`` holds it."""
        plan = self.plan
        return {
            "format": FORMAT,
            "verb": self.verb,
            "partial": self.interrupted,
            "valid": bool(self.results) and all(r["valid"] for r in self.results),
            "baseline": self.baseline,
            "settings": {
                "workload": plan.workload.source,
                "prompts": plan.workload.whole,
                "prompts_digest": plan.workload.digest,
                "benchmarks": list(plan.workload.benchmarks),
                "output": str(plan.output),
                "arrivals": str(plan.law),
                "requests": plan.requests,
                "ramp": plan.ramp,
                "warmup": len(plan.workload.warmup),
                "seed": plan.seed,
                "stream": plan.stream,
                "streaming": plan.output.stream,
                "processes": plan.processes,
                "slo": str(plan.slo) if plan.slo else None,
                **self.settings,
            },
            "servers": self.servers,
            "results": self.results,
            "probes": self.probes,
            "provenance": provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
        }

    def write(self) -> None:
        """Write ``result.json``, whole or not at all."""
        path = self.out / "result.json"
        partial = path.with_suffix(".partial")
        report = self.report()
        done = {(r["arm"], r["load"]) for r in [*self.results, *self.probes]}
        report["results"] = [
            *self.results,
            *(r for r in self._earlier if (r.get("arm"), r.get("load")) not in done),
        ]
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def each(
    campaign: Campaign,
    loads: Callable[[Endpoint], Sequence[Load]],
) -> None:
    """Every arm at every load. Running servers take turns, load by load; those that have to be
    started first are finished one after the other."""
    if all(arm.url for arm in campaign.arms):
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(campaign.serving(arm)) for arm in campaign.arms]
            for at in range(max(len(loads(target)) for target in targets)):
                for target in targets:
                    campaign.measure(target, loads(target)[at])
        return
    for arm in campaign.arms:
        with campaign.serving(arm) as target:
            for load in loads(target):
                campaign.measure(target, load)
