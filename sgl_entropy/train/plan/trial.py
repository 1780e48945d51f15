"""Seconds of this machine, from a few real steps of generation and of fitting (ours)."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.file import Answered, in_batches
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.plan.counts import Seconds, held_bytes, unrolled_shares
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.plan.slots import worker_schedule
from sgl_entropy.train.prompts.order import PREFILL_ROWS, Prompt
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.samples.features import features_of
from sgl_entropy.train.samples.generate import Batch
from sgl_entropy.train.samples.shards import Sample, write_shard
from sgl_entropy.train.samples.store import FORMAT, Entry, Store, write_meta
from sgl_entropy.train.settings.fit import FitSettings

# What is timed: prefills, lengths at which decode steps are, steps at each, optimizer steps.
_PREFILLS, _DECODE_LENGTHS, _DECODE_STEPS, _BATCHES = 6, 3, 5, 24

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Trial:
    """What the measuring processes need: picklable."""

    target: str
    layers: tuple[int, ...]
    config: DrafterConfig
    fit: FitSettings
    lengths: Lengths
    slots: int
    workers: int
    dtype: str


def measure_here(trial: Trial) -> Seconds:
    """A few real steps of both stages."""
    basis = "measured here, on the CPU: a few steps of each stage"
    made = generate_seconds(trial)
    if not trial.fit.online:
        made += feature_seconds(trial, trial.lengths.unread, trial.workers)
    return Seconds(made, fit_seconds(trial), basis)


def generate_seconds(trial: Trial) -> float:
    """Of all answers that are not there yet, with their features, in as many processes as it will
    use."""
    new = trial.lengths.new
    if not new:
        return 0.0
    workers = min(trial.workers, len(new))
    with _pool(workers) as pool:
        rates = list(pool.map(_generation_rate, [trial] * workers, range(workers)))
    return sum(entry.length - entry.prompt_length for entry in new) / workers / min(rates)


def feature_seconds(trial: Trial, entries: Sequence[Entry], workers: int) -> float:
    """Of the target's forward over ``entries``, which are answered, in so many processes."""
    if not entries:
        return 0.0
    workers = min(workers, len(entries))
    with _pool(workers) as pool:
        rates = list(pool.map(_feature_rate, [trial] * workers, [list(entries)] * workers))
    return sum(entry.length for entry in entries) / workers / min(rates)


def fit_seconds(trial: Trial) -> float:
    """Of all optimizer steps, in a process of its own, and of the target's share where it computes
    features online."""
    with _pool(1) as pool:
        took = pool.submit(_fit_seconds, trial).result()
    fit = trial.fit
    if fit.online:
        learned = trial.lengths.learned(fit)
        if held_bytes(trial.config, trial.lengths, fit) <= fit.hold_gb * 1e9:
            took += feature_seconds(trial, [*learned, *trial.lengths.held_out(fit)], 1)
        else:
            took += fit.epochs * feature_seconds(trial, learned, 1)
    return took


def _pool(workers: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _spread(items: Sequence[T], wanted: int, size: Callable[[T], int]) -> list[T]:
    """The middle ones of ``wanted`` equal parts of the items, in the order of ``size``."""
    order = sorted(items, key=size)
    wanted = min(wanted, len(order))
    return [order[(2 * i + 1) * len(order) // (2 * wanted)] for i in range(wanted)]


def _generation_rate(trial: Trial, number: int) -> float:
    """Answer tokens a second of worker ``number``: prefills and decode steps of its schedule, each
    at the mean cost of a few that are spread over their sizes."""
    torch.set_num_threads(1)
    schedule = worker_schedule(trial.lengths.new, number, trial.workers, trial.slots)
    target = PlainTarget.from_folder(trial.target, getattr(torch, trial.dtype))
    longest = max(schedule.steps) + _DECODE_STEPS + 2
    batch = Batch(target, schedule.slots, longest, trial.layers)
    prefills = _spread(schedule.prefills, _PREFILLS, _padded)
    batch.admit(prefills[0], range(len(prefills[0])))  # makes kernels
    taken = sum(_seconds(batch.admit, part, range(len(part))) for part in prefills)
    prefill = taken * sum(map(_padded, schedule.prefills)) / sum(map(_padded, prefills))
    # From here on all slots are taken, by whatever they hold.
    batch.prompts = [prefills[0][0]] * schedule.slots
    steps = []
    for length in _spread(schedule.steps, _DECODE_LENGTHS, int):
        batch.cache = target.new_cache(schedule.slots)
        batch.lengths.fill_(length)
        batch.step()  # makes room
        steps.append(statistics.median(_seconds(batch.step) for _ in range(_DECODE_STEPS)))
    # A step costs what its slots cost.
    full = sum(schedule.held) / schedule.slots
    return schedule.answer_tokens / (prefill + full * statistics.fmean(steps))


def _feature_rate(trial: Trial, entries: Sequence[Entry]) -> float:
    """Tokens a second of the target's forward over answers, from a few batches of their lengths."""
    torch.set_num_threads(1)
    target = PlainTarget.from_folder(trial.target, getattr(torch, trial.dtype))
    ordered = sorted(entries, key=lambda entry: entry.length)
    blank = [Answered(e.prompt_id, e.prompt_length, (0,) * e.length) for e in ordered]
    parts = _spread(list(in_batches(blank, PREFILL_ROWS)), _PREFILLS, len)
    features_of(target, parts[0], trial.layers)  # makes kernels
    took = sum(_seconds(features_of, target, part, trial.layers) for part in parts)
    return sum(len(one.tokens) for part in parts for one in part) / took


def _padded(part: Sequence[Prompt]) -> int:
    """Rows of a prefill, padding included."""
    return len(part) * max(len(prompt.tokens) for prompt in part)


def _seconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    began = time.perf_counter()
    work(*args, **kwargs)
    return time.perf_counter() - began


def _fit_seconds(trial: Trial) -> float:
    """Seconds of all optimizer steps, from real steps on a store of noise: some batches of the real
    plan, spread over their widths, with sequences of the planned lengths."""
    torch.set_num_threads(1)
    fit = trial.fit
    entries, first = trial.lengths.learned(fit), trial.lengths.prompt_from(fit)
    # Schedules are straight lines over the epochs: a few of them tell the others.
    some = sorted({round(i * (fit.epochs - 1) / 3) for i in range(4)})
    picked = {
        epoch: _spread(
            plan_epoch(entries, fit.rows, fit.seed, epoch, first), _BATCHES // len(some), _width
        )
        for epoch in some
    }
    with tempfile.TemporaryDirectory() as folder:
        run = _noise_fit(trial, [one for plan in picked.values() for one in plan], Path(folder))
        held = {entry.prompt_id: entry for entry in run.store.entries}
        batches = {
            epoch: [[held[entry.prompt_id] for entry in batch] for batch in plan]
            for epoch, plan in picked.items()
        }
        run.learn(batches[0][0], 0, 10**6)  # makes kernels
        cost = [
            sum(_seconds(run.learn, batch, epoch, 10**6) for batch in plan)
            / sum(chain_count(entry, first) for batch in plan for entry in batch)
            for epoch, plan in batches.items()
        ]
    chains = sum(chain_count(entry, first) for entry in entries)
    costs = np.interp(range(fit.epochs), some, cost)
    shares = [statistics.fmean(unrolled_shares(fit, epoch)) for epoch in range(fit.epochs)]
    return float(chains * costs.dot(shares))


def _width(batch: Sequence[Entry]) -> int:
    return max(entry.length for entry in batch)


def _noise_fit(trial: Trial, batches: Sequence[Sequence[Entry]], folder: Path) -> Fit:
    """A fit that is thrown away, on samples of noise as long as those of ``batches``, under their
    prompt ids."""
    config, shared = trial.config, trial.lengths.shared
    d, taps = config.target_hidden_size, config.target_layer_ids or ()
    generator = torch.Generator().manual_seed(0)

    def noise(entry: Entry) -> Sample:
        n = entry.length
        tokens = torch.randint(config.vocab_size, (n,), generator=generator)
        tokens[:shared] = 0
        return Sample(
            entry.prompt_id,
            entry.prompt_length,
            tokens,
            torch.randn(n - 1, len(taps) * d, generator=generator).to(torch.bfloat16),
            torch.randn(n - 1, d, generator=generator).to(torch.bfloat16),
            torch.rand(n - 1, generator=generator),
            torch.randint(config.draft_vocab_size, (n - 1,), generator=generator),
        )

    wanted = {entry.prompt_id: entry for batch in batches for entry in batch}
    meta = {"format": FORMAT, "tap_layers": list(taps), "hidden_size": d}
    write_meta(folder / "store", meta)
    write_shard(folder / "store" / "noise.safetensors", [noise(one) for one in wanted.values()])
    embedding, head = read_embedding_and_head(Path(trial.target))
    return Fit(
        config,
        # None of them is held out.
        replace(
            trial.fit,
            solved_start=False,
            reached_only=False,  # of noise, nothing would be
            start="",
            validation_every=10**9,
            answer_tokens=0,
            online=False,
            hold_gb=0.0,
        ),
        Store(folder / "store"),
        torch.arange(config.draft_vocab_size),
        embedding,
        head,
        folder / "fit",
    )
