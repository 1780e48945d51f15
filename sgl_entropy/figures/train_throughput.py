"""Training throughput against a straightforward loop: paired by batch, with parts and memory.

All arms start from the same weights and take the same batches in turn, so that their losses can be
compared as well as their times; who goes first rotates. Optimizer steps are real ones, on drafters
that are thrown away. (Ours.)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.figures.peak_memory import memory_of
from sgl_entropy.figures.plain_loop import Straightforward
from sgl_entropy.figures.stopwatch import PARTS, places, timing
from sgl_entropy.figures.store_bytes import bytes_a_token
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.loss.unrolled import StepFigures
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import Entry, Store
from sgl_entropy.train.settings.file import TrainSettings
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace

OURS, OURS_FLOAT32, PLAIN = "ours", "ours, float32", "straightforward"
Trainer = Fit | Straightforward


@dataclass(frozen=True)
class Job:
    """What a measuring process needs: picklable."""

    settings: TrainSettings
    algorithm: Algorithm
    arm: str


def layers_of(work: Workspace) -> dict[str, tuple[int, ...]]:
    """The layers that each drafter taps."""
    given = work.settings.drafter
    return {"EDSD": given.layers, "EAGLE3": given.eagle3_taps(work.num_layers)}


def make_trainer(job: Job) -> Trainer:
    """The arm's training, at its first step."""
    settings = job.settings.fit
    if job.arm != OURS:
        settings = replace(settings, dtype="float32")
    work = Workspace.of(job.settings)
    config = drafter.drafter_config(work, job.algorithm)
    store = checked_store(work)
    embedding, head = read_embedding_and_head(work.target)
    with tempfile.TemporaryDirectory() as scratch:
        run = Fit(
            config,
            settings,
            store,
            drafter.make_vocabulary(work, store),
            embedding,
            head,
            Path(scratch),
        )
    return run if job.arm != PLAIN else Straightforward(run, embedding, head)


def measure(
    work: Workspace, algorithm: Algorithm, batches: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Everything of the figure.

    Args:
        batches: that every arm learns from while it is timed, spread evenly over the epochs.

    Returns:
        ``algorithm``, ``fit``, ``batches``, ``arms`` (see ``_arm``), ``profile`` (seconds of each
        part over the same batches), ``losses`` (see ``_losses``), and ``storage``.

    Raises:
        ValueError: no store, ``fit.online`` or ``fit.prompt_rows``, or too few batches.
    """
    settings = work.settings
    if settings.fit.online:
        raise ValueError("benchmark reads a feature store: fit.online is set")
    ours = make_trainer(Job(settings, algorithm, OURS))
    store = ours.store
    assert isinstance(ours, Fit)
    assert isinstance(store, Store)
    names = [OURS, PLAIN] if ours.settings.dtype == "float32" else [OURS, OURS_FLOAT32, PLAIN]
    plans = [ours.plan(epoch) for epoch in range(ours.settings.epochs)]
    picked = spread_out(plans, batches)
    total = sum(map(len, plans))
    arms: dict[str, Trainer] = {
        name: ours if name == OURS else make_trainer(Job(settings, algorithm, name))
        for name in names
    }
    report(f"{len(picked)} batches for each of {', '.join(names)}, in turn")
    taken, figures = _race(arms, picked, total, report)
    report("parts")
    profile = {name: _parts(arms[name], picked, total) for name in (OURS, PLAIN)}
    widest = max(picked, key=lambda one: padded_rows(one[1]))
    largest = {name: largest_tensors(arm, widest, total) for name, arm in arms.items()}
    report("memory, each arm in a process of its own")
    memory = {
        name: memory_of(make_trainer, widest_steps, Job(settings, algorithm, name))
        for name in names
    }
    tokens = sum(e.length - e.prompt_length for _, entries in picked for e in entries)
    config = ours.config
    return {
        "algorithm": algorithm,
        "drafter": config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size},
        "fit": asdict(ours.settings) | {"start": Path(ours.settings.start).name},
        "threads": torch.get_num_threads(),
        "batches": len(picked),
        "answer_tokens": tokens,
        "tokens": sum(e.length for _, entries in picked for e in entries),
        "arms": {
            name: _arm(taken[name], taken[OURS], figures[name], tokens)
            | {"tensors": largest[name], "memory": asdict(memory[name])}
            for name in names
        },
        "losses": _losses(figures),
        "profile": profile,
        "storage": bytes_a_token(store, layers_of(work)),
    }


Batches = Sequence[tuple[int, list[Entry]]]


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
    arms: Mapping[str, Trainer], picked: Batches, total: int, report: Callable[[str], None]
) -> tuple[dict[str, list[float]], dict[str, list[list[StepFigures]]]]:
    """(seconds, figures) of each arm's batches. The first batch is learned from twice: making
    kernels and optimizer state is not timed, what it learns is kept for the losses."""
    names = list(arms)
    taken: dict[str, list[float]] = {name: [] for name in names}
    figures: dict[str, list[list[StepFigures]]] = {name: [] for name in names}
    for number, (epoch, entries) in enumerate([picked[0], *picked]):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            figures[name].append(arms[name].learn(entries, epoch, total))
            if number:
                taken[name].append(time.perf_counter() - began)
        if number:
            report(f"{number}/{len(picked)}: " + ", ".join(f"{taken[n][-1]:.2f} s" for n in names))
    return taken, figures


def _arm(
    taken: Sequence[float],
    ours: Sequence[float],
    figures: Sequence[Sequence[StepFigures]],
    tokens: int,
) -> dict[str, Any]:
    """Rates of one arm, and its time over ours: of all batches, and by batch."""
    rows = sum(f.rows for batch in figures[1:] for f in batch)
    ratios = [mine / other for mine, other in zip(taken, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "seconds": round(sum(taken), 3),
        "rows": rows,
        "rows_per_s": round(rows / sum(taken), 1),
        "answer_tokens_per_s": round(tokens / sum(taken), 1),
        "seconds_over_ours": round(sum(taken) / sum(ours), 3),
        "by_batch": {
            "median": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        },
        "batch_seconds": [round(one, 4) for one in taken],
    }


def _losses(figures: Mapping[str, Sequence[Sequence[StepFigures]]]) -> dict[str, Any]:
    """Mean losses of each arm's first batch by draft step (equal weights), and the largest
    relative difference from the straightforward loop's there and over all batches."""

    def means(batch: Sequence[StepFigures]) -> list[float]:
        return [f.loss / max(1, f.counted) for f in batch]

    def differ(name: str, batches: slice) -> float:
        return max(
            abs(mine - plain) / plain
            for one, other in zip(figures[name][batches], figures[PLAIN][batches], strict=True)
            for mine, plain in zip(means(one), means(other), strict=True)
            if plain
        )

    return {
        name: {
            "first": [round(loss, 5) for loss in means(batches[0])],
            "last": [round(loss, 5) for loss in means(batches[-1])],
            "counted": [f.counted for f in batches[0]],
            "first_differs": differ(name, slice(0, 1)),
            "all_differ": differ(name, slice(None)),
        }
        for name, batches in figures.items()
    }


def _parts(trainer: Trainer, picked: Batches, total: int) -> dict[str, float]:
    with timing(places(trainer)) as clock:
        for epoch, entries in picked:
            with clock.part("rest"):
                trainer.learn(entries, epoch, total)
    return {part: round(clock.seconds[part], 4) for part in PARTS}


@dataclass(frozen=True)
class Made:
    """A tensor that an operation made."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    bytes: int = 0


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that an operation makes, and the largest floating one whose
    rows are ``width`` wide."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width = width
        self.largest, self.wide = Made(), Made()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(result.alias_info for result in func._schema.returns):
            return out  # a view, or an argument written to: nothing new
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self._look(one)
        return out

    def _look(self, one: torch.Tensor) -> None:
        name = str(one.dtype).removeprefix("torch.")
        made = Made(tuple(one.shape), name, one.numel() * one.element_size())
        if made.bytes > self.largest.bytes:
            self.largest = made
        rows = one.dim() > 1 and one.shape[-1] == self.width and one.is_floating_point()
        if rows and made.bytes > self.wide.bytes:
            self.wide = made


def largest_tensors(
    trainer: Trainer, batch: tuple[int, list[Entry]], total: int
) -> dict[str, dict[str, Any]]:
    """The ``largest`` tensor that learning a batch makes, and the largest as ``wide`` as the
    target's vocabulary (0 bytes: none)."""
    with _Largest(trainer.config.vocab_size) as seen:
        trainer.learn(batch[1], batch[0], total)
    return {"largest": asdict(seen.largest), "wide": asdict(seen.wide)}


def padded_rows(entries: Sequence[Entry]) -> int:
    """Rows of a batch, padding included."""
    return len(entries) * max(entry.length for entry in entries)


def widest_steps(trainer: Trainer, count: int = 3) -> None:
    """Learn from the last epoch's batches with most padded rows, of ``count`` optimizer steps."""
    last = trainer.settings.epochs - 1
    plan = trainer.plan(last)
    for entries in sorted(plan, key=padded_rows, reverse=True)[:count]:
        trainer.learn(entries, last, 10**6)
