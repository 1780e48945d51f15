"""What all figures share: what is served, which prompts, and where records and results go."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sgl_entropy.base.identity import Identity
from sgl_entropy.base.json_file import read_lines
from sgl_entropy.base.provenance import footer, provenance, served_hash
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server, free_port

BENCHMARKS = ("mt_bench", "humaneval", "gsm8k", "alpaca", "sum")
# An interval as results hold it: value, low and high (None = not known).
Rounded = Mapping[str, float | None]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class FigurePlan:
    """A figure's settings.

    Attributes:
        prompts: folder with the five benchmarks' JSONL files.
        work: where records grow while a figure is measured, so that it can be resumed.
        results: where the finished figure goes.
        chosen: arms with drafters, in place of ``eagle3`` and ``edsd``.
        spent: files of records that are dropped once the figure is written.
    """

    engine: Engine
    eagle3: Path
    edsd: Path
    prompts: Path | None
    work: Path
    results: Path
    quick: bool = False
    chosen: tuple[ServeArm, ...] = ()
    spent: list[Path] = field(default_factory=list, compare=False)

    def arms(self) -> list[ServeArm]:
        """The arms of the comparison, chains of 4: no drafter, then EAGLE-3 and EDSD or others."""
        pair = (ServeArm("eagle3", "EAGLE3", self.eagle3), ServeArm("edsd", "EDSD", self.edsd))
        return [ServeArm("none"), *(self.chosen or pair)]

    def drafted(self, name: str) -> ServeArm:
        """The arm with the drafter ``name``. Raises ValueError where there is none."""
        for arm in self.arms():
            if arm.name == name and arm.drafter is not None:
                return arm
        raise ValueError(f"no drafter {name!r}: expected eagle3 or edsd")

    def server(self, arm: ServeArm, engine: Engine | None = None) -> Server:
        """A server for ``arm``, not started; its log lies in the work folder.

        Figures that run side by side keep logs of their own: some count what is in them.
        """
        engine = engine or self.engine
        port = free_port()
        return Server(
            arm.name,
            engine.command(arm, port),
            port,
            self.work / "logs" / f"{arm.name}-{port}.log",
            {**engine.environment(), **dict(arm.variables)},
        )

    def records(self, name: str) -> Records:
        """The finished pieces of an unfinished figure: once that is written, they are dropped."""
        records = Records(self.work / f"{name}.jsonl")
        self.spent.append(records.path)
        return records

    def provenance(self) -> dict[str, Any]:
        """Where this figure comes from."""
        drafters = {arm.name: arm.drafter for arm in self.arms() if arm.drafter is not None}
        return provenance(self.engine.threads, {"target": self.engine.target, **drafters})

    def target_key(self) -> str:
        """A short key of what the target writes without us: its weights and dtype."""
        parts = [Identity.of(self.engine.target).sha256, self.engine.dtype, ""]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]

    def arm_key(self, arm: ServeArm) -> str:
        """A short key of all that decides what ``arm`` writes: code, weights, shape and flags."""
        parts = [served_hash(), self.target_key(), arm.algorithm or ""]
        if arm.drafter is not None:
            parts += [Identity.of(arm.drafter).sha256, f"{arm.steps}.{arm.topk}.{arm.draft_tokens}"]
        parts += [*arm.extra_flags, *(f"{name}={value}" for name, value in arm.variables)]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class BenchPrompt:
    """One benchmark's first turn; ``id`` is ``benchmark/question_id``."""

    id: str
    text: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a conversation of one user message."""
        return [{"role": "user", "content": self.text}]


def benchmark_prompts(folder: Path | None, per_benchmark: int) -> list[BenchPrompt]:
    """The first ``per_benchmark`` prompts of each of the five benchmarks, interleaved.

    Raises:
        ValueError: the folder or one of its files is missing, or a file is too short.
    """
    if folder is None:
        raise ValueError(
            f"name the folder with the benchmarks ({', '.join(BENCHMARKS)}, one JSONL file each, "
            "rows with `turns`) with --prompts DIR"
        )
    columns = []
    for name in BENCHMARKS:
        file = folder / f"{name}.jsonl"
        if not file.is_file():
            raise ValueError(f"--prompts {folder}: {file.name} is missing")
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        if len(rows) < per_benchmark:
            raise ValueError(f"{file}: {len(rows)} prompts, {per_benchmark} are needed")
        columns.append(
            [
                BenchPrompt(f"{name}/{row['question_id']}", row["turns"][0])
                for row in rows[:per_benchmark]
            ]
        )
    return [prompt for group in zip(*columns, strict=True) for prompt in group]


class Records:
    """A JSONL file of finished pieces, one a line with its ``id``; resumes where it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = {row["id"]: row for row in read_lines(path)}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one finished piece, on disk before this returns."""
        self.rows[row["id"]] = dict(row)
        with self.path.open("a") as handle:
            # A line that was cut short must not swallow this one.
            if handle.tell() and not self._ends_with_newline():
                handle.write("\n")
            handle.write(json.dumps(row) + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as handle:
            handle.seek(-1, os.SEEK_END)
            return handle.read(1) == b"\n"

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of ``ids`` that have no row yet, in order."""
        return [name for name in ids if name not in self.rows]


def in_parallel(
    items: Iterable[T], concurrency: int, work: Callable[[T], R], done: Callable[[R], None]
) -> None:
    """``work`` on every item, ``concurrency`` at a time; ``done`` on each result as it comes.

    ``done`` runs in the caller's thread. The first error ends it: nothing further is started.
    """
    pool = ThreadPoolExecutor(concurrency)
    waiting = iter(items)
    try:
        running = {pool.submit(work, item) for item in itertools.islice(waiting, concurrency)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            results = [future.result() for future in finished]
            running |= {pool.submit(work, item) for item in itertools.islice(waiting, len(results))}
            for result in results:
                done(result)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def write_results(plan: FigurePlan, name: str, result: object, page: str) -> Path:
    """Write ``NAME.json`` and ``NAME.md`` with provenance; returns the page's path.

    Args:
        result: the figure's class, or an object of JSON.
    """
    facts = plan.provenance()
    plan.results.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-quick" if plan.quick else name
    whole = {**as_json(result), "provenance": facts}
    (plan.results / f"{stem}.json").write_text(json.dumps(whole, indent=2) + "\n")
    path = plan.results / f"{stem}.md"
    path.write_text(f"{page.rstrip()}\n\n{footer(facts)}\n")
    for records in plan.spent:
        records.unlink(missing_ok=True)
    return path
