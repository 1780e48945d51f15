"""Training throughput against a straightforward loop: paired by batch, with parts and memory.

All loops start from the same weights and take the same batches in turn, so that their losses can
be compared as well as their times; which goes first rotates. Optimizer steps are real ones, on
drafters that are thrown away. (Ours.)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sgl_entropy.base.intervals import quartiles
from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.figures.plain_loop import Straightforward
from sgl_entropy.figures.store_bytes import Storage, bytes_a_token
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.loss.unrolled import StepFigures
from sgl_entropy.train.machine.peak_memory import Memory, in_own_processes
from sgl_entropy.train.plan.trial import padded_rows
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import Entry, Store
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace

OURS, OURS_FLOAT32, PLAIN = "ours", "ours, float32", "straightforward"
# Where a step's time goes. Each part but the first and the last is a range of torch's profiler,
# named "train: " and the part, in the loops themselves; "layer" is "forward" without the ranges
# inside it.
PARTS = {
    "data": "reading samples, padding, labels",
    "target": "the target's distribution",
    "layer": "fusion, attention and MLP, forward; look-ups",
    "head": "final norm, head, loss; in ours with their gradients",
    "backward": "the rest of backward",
    "optimizer": "clipping and AdamW",
    "rest": "everything else of the step",
}
Trainer = Fit | Straightforward
# (epoch, batch) of every step.
Batches = Sequence[tuple[int, list[Entry]]]


@dataclass(frozen=True)
class ThroughputJob:
    """Which loop a measuring process builds: ``OURS``, ``OURS_FLOAT32`` or ``PLAIN``. Picklable."""

    work: Workspace
    algorithm: Algorithm
    loop: str


@dataclass(frozen=True)
class Spread:
    """Of a loop's batches: seconds over those of ours."""

    median: float
    quartiles: tuple[float, float]
    range: tuple[float, float]


@dataclass(frozen=True)
class LoopFigures:
    """One loop. A row is a chain at one draft step.

    Attributes:
        seconds, rows, batch_seconds: of the timed batches.
        seconds_over_ours: of all batches; by_batch: batch by batch.
        memory: of a few steps on the widest batches.
    """

    seconds: float
    rows: int
    rows_per_s: float
    answer_tokens_per_s: float
    seconds_over_ours: float
    by_batch: Spread
    batch_seconds: list[float]
    memory: Memory


@dataclass(frozen=True)
class Losses:
    """Mean losses of a loop by draft step.

    Attributes:
        first: of the first batch, when all loops have equal weights; counted: its rows.
        last: of the last batch.
        first_differs, all_differ: largest relative difference from the straightforward loop's, of
            the first batch and of all.
    """

    first: list[float]
    last: list[float]
    counted: list[int]
    first_differs: float
    all_differ: float


@dataclass(frozen=True)
class Throughput:
    """The figure, as its JSON file holds it.

    Attributes:
        drafter, fit: the drafter's config and the settings of the fit, as JSON.
        answer_tokens, tokens: of the timed batches; tokens count prompts too.
        arms: by loop.
        profile: seconds of each part over the same batches, of ours and the straightforward loop.
    """

    algorithm: str
    drafter: dict[str, Any]
    fit: dict[str, Any]
    threads: int
    batches: int
    answer_tokens: int
    tokens: int
    arms: dict[str, LoopFigures]
    losses: dict[str, Losses]
    profile: dict[str, dict[str, float]]
    storage: Storage


def layers_of(work: Workspace) -> dict[str, tuple[int, ...]]:
    """The layers that each drafter taps."""
    given = work.settings.drafter
    return {"EDSD": given.layers, "EAGLE3": given.eagle3_taps(work.num_layers)}


def make_trainer(job: ThroughputJob) -> Trainer:
    """The job's loop, at its first step."""
    work, settings = job.work, job.work.settings.fit
    if job.loop != OURS:
        settings = replace(settings, dtype="float32")
    config = drafter.drafter_config(work, job.algorithm)
    store = checked_store(work)
    embedding, head = read_embedding_and_head(work.target)
    with tempfile.TemporaryDirectory() as scratch:
        fit = Fit(
            config,
            settings,
            store,
            drafter.make_vocabulary(work, store),
            embedding,
            head,
            Path(scratch),
        )
    return fit if job.loop != PLAIN else Straightforward(fit, embedding, head)


def measure(
    work: Workspace, algorithm: Algorithm, batches: int, report: Callable[[str], None]
) -> Throughput:
    """The figure.

    Args:
        batches: that every loop learns from while it is timed, spread evenly over the epochs.

    Raises:
        ValueError: no store, ``fit.online`` or ``fit.prompt_rows``, or too few batches.
    """
    if work.settings.fit.online:
        raise ValueError("benchmark reads a feature store: fit.online is set")
    ours = make_trainer(ThroughputJob(work, algorithm, OURS))
    assert isinstance(ours, Fit)
    store = ours.samples.store
    assert isinstance(store, Store)
    names = [OURS, PLAIN] if ours.settings.dtype == "float32" else [OURS, OURS_FLOAT32, PLAIN]
    jobs = {name: ThroughputJob(work, algorithm, name) for name in names}
    plans = [ours.plan(epoch) for epoch in range(ours.settings.epochs)]
    picked = spread_out(plans, batches)
    total = sum(map(len, plans))
    trainers = {name: ours if name == OURS else make_trainer(jobs[name]) for name in names}
    report(f"{len(picked)} batches for each of {', '.join(names)}, in turn")
    taken, figures = _race(trainers, picked, total, report)
    report("parts")
    parts = {name: step_parts(trainers[name], picked, total) for name in (OURS, PLAIN)}
    report("memory, each loop in a process of its own")
    memory = {
        name: in_own_processes(make_trainer, widest_steps, [job])[0].memory
        for name, job in jobs.items()
    }
    tokens = sum(e.length - e.prompt_length for _, entries in picked for e in entries)
    config = ours.config
    return Throughput(
        algorithm,
        config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size},
        asdict(ours.settings) | {"start": Path(ours.settings.start).name},
        torch.get_num_threads(),
        len(picked),
        tokens,
        sum(e.length for _, entries in picked for e in entries),
        {
            name: _loop_figures(taken[name], taken[OURS], figures[name], tokens, memory[name])
            for name in names
        },
        {name: _losses(figures[name], figures[PLAIN]) for name in names},
        parts,
        bytes_a_token(store, layers_of(work)),
    )


def spread_out(
    plans: Sequence[Sequence[list[Entry]]], wanted: int
) -> list[tuple[int, list[Entry]]]:
    """(epoch, batch) of ``wanted`` batches, as many of each epoch, epoch by epoch.

    Raises:
        ValueError: fewer than one an epoch, or more than an epoch has.
    """
    each = wanted // len(plans)
    if not 1 <= each <= min(map(len, plans)):
        raise ValueError(
            f"--batches {wanted}: between 1 and {min(map(len, plans))} for each of "
            f"{len(plans)} epochs"
        )
    return [
        (epoch, plan[i * len(plan) // each])
        for epoch, plan in enumerate(plans)
        for i in range(each)
    ]


def _race(
    trainers: Mapping[str, Trainer], picked: Batches, total: int, report: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, list[list[StepFigures]]]]:
    """(seconds, figures) of each loop's batches. The first batch is learned from twice: making
    kernels and optimizer state is not timed, what it learns is kept for the losses."""
    names = list(trainers)
    taken: dict[str, list[float]] = {name: [] for name in names}
    figures: dict[str, list[list[StepFigures]]] = {name: [] for name in names}
    for number, (epoch, entries) in enumerate([picked[0], *picked]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            figures[name].append(trainers[name].learn(entries, epoch, total))
            if number:
                taken[name].append(time.perf_counter() - began)
        if number:
            report(f"{number}/{len(picked)}: " + ", ".join(f"{taken[n][-1]:.2f} s" for n in names))
    return taken, figures


def _loop_figures(
    taken: Sequence[float],
    ours: Sequence[float],
    figures: Sequence[Sequence[StepFigures]],
    tokens: int,
    memory: Memory,
) -> LoopFigures:
    rows = sum(f.rows for batch in figures[1:] for f in batch)
    ratios = [mine / other for mine, other in zip(taken, ours, strict=True)]
    low, middle, high = (round(one, 3) for one in quartiles(ratios))
    return LoopFigures(
        round(sum(taken), 3),
        rows,
        round(rows / sum(taken), 1),
        round(tokens / sum(taken), 1),
        round(sum(taken) / sum(ours), 3),
        Spread(middle, (low, high), (round(min(ratios), 3), round(max(ratios), 3))),
        [round(one, 4) for one in taken],
        memory,
    )


def _losses(own: Sequence[Sequence[StepFigures]], plain: Sequence[Sequence[StepFigures]]) -> Losses:
    def means(batch: Sequence[StepFigures]) -> list[float]:
        return [f.loss / max(1, f.counted) for f in batch]

    differences = [
        max((abs(a - b) / b for a, b in zip(means(one), means(other), strict=True) if b), default=0)
        for one, other in zip(own, plain, strict=True)
    ]
    return Losses(
        [round(loss, 5) for loss in means(own[0])],
        [round(loss, 5) for loss in means(own[-1])],
        [f.counted for f in own[0]],
        differences[0],
        max(differences),
    )


def step_parts(trainer: Trainer, picked: Batches, total: int) -> dict[str, float]:
    """Seconds of each of ``PARTS`` while ``trainer`` learns from ``picked``: the CPU's time in the
    loops' ranges, from torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for epoch, entries in picked:
            with record_function("train: step"):
                trainer.learn(entries, epoch, total)
    spent = {event.key: event.cpu_time_total / 1e6 for event in seen.key_averages()}
    part = {name: spent.get(f"train: {name}", 0.0) for name in (*PARTS, "forward", "step")}
    part["layer"] = part["forward"] - part["target"] - part["head"]
    part["rest"] = part["step"] - sum(
        part[name] for name in ("data", "forward", "backward", "optimizer")
    )
    return {name: round(part[name], 4) for name in PARTS}


def widest_steps(trainer: Trainer, count: int = 3) -> None:
    """Learn from the last epoch's batches with most padded rows, of ``count`` optimizer steps."""
    last = trainer.settings.epochs - 1
    plan = trainer.plan(last)
    for entries in sorted(plan, key=padded_rows, reverse=True)[:count]:
        trainer.learn(entries, last, 10**6)
