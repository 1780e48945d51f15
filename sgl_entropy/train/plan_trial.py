"""Seconds of this machine, from a few real steps of generation and of fitting (ours)."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.drafter.plain_target import PlainTarget
from sgl_entropy.train.fit import Fit
from sgl_entropy.train.fit_costs import chain_seconds
from sgl_entropy.train.fit_settings import FitSettings
from sgl_entropy.train.generate import PREFILL_ROWS, Batch, Prompt
from sgl_entropy.train.plan import Lengths, Seconds, chains_of, trained_sequences
from sgl_entropy.train.store import FORMAT, Sample, Store, write_meta, write_shard

_SEQUENCES = 24
_DECODE_STEPS = 12


@dataclass(frozen=True)
class Trial:
    """What the measuring processes need: picklable."""

    target: str
    layers: tuple[int, ...]
    config: DrafterConfig
    fit: FitSettings
    lengths: Lengths
    prompts: tuple[Prompt, ...]
    slots: int
    workers: int
    dtype: str


def measure_here(trial: Trial) -> Seconds:
    """A few real steps of both stages."""
    basis = "measured here: a few steps of each stage"
    return Seconds(generate_seconds(trial), fit_seconds(trial), basis)


def generate_seconds(trial: Trial) -> float:
    """Of all answers with their features, in as many processes as it will use."""
    with _pool(trial.workers) as pool:
        rates = list(pool.map(_generation_rate, [trial] * trial.workers))
    return trial.lengths.sequences * trial.lengths.answer / sum(rates)


def fit_seconds(trial: Trial) -> float:
    """Of all optimizer steps, in a process of its own."""
    with _pool(1) as pool:
        return pool.submit(_fit_seconds, trial).result()


def _pool(workers: int) -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _generation_rate(trial: Trial) -> float:
    """Answer tokens a second of one worker: prefilling its slots, then decoding them."""
    torch.set_num_threads(1)
    target = PlainTarget.from_folder(trial.target, getattr(torch, trial.dtype))
    slots = min(trial.slots, trial.lengths.sequences)
    prompts = _of_mean_length(trial, slots)
    longest = max(len(prompt.tokens) for prompt in prompts)
    answer = trial.lengths.answer
    batch = Batch(target, slots, longest + round(answer) + _DECODE_STEPS + 2, trial.layers)
    part = max(1, min(slots, PREFILL_ROWS // longest))
    filled, prefill = 0, 0.0
    for start in range(0, slots, part):
        some = prompts[start : start + part]
        began = time.perf_counter()
        batch.admit(some, range(start, start + len(some)))
        if start or slots <= part:  # the first makes kernels
            prefill += time.perf_counter() - began
            filled += len(some)
    # Half-way through an answer the attention is as long as it is on average.
    batch.lengths += round(answer / 2)
    times = []
    for _ in range(_DECODE_STEPS):
        began = time.perf_counter()
        batch.step()
        times.append(time.perf_counter() - began)
    per_sequence = prefill / filled + answer * statistics.median(times) / slots
    return answer / per_sequence


def _of_mean_length(trial: Trial, wanted: int) -> list[Prompt]:
    """Real prompts, nearest to the mean length."""
    order = sorted(trial.prompts, key=lambda p: abs(len(p.tokens) - trial.lengths.prompt))
    return [order[i % len(order)] for i in range(wanted)]


def _fit_seconds(trial: Trial) -> float:
    """Seconds of all optimizer steps, from real steps on a store of noise of the right sizes."""
    torch.set_num_threads(1)
    fit, lengths = trial.fit, trial.lengths
    d = trial.config.target_hidden_size
    taps = trial.config.target_layer_ids or ()
    n = round(lengths.prompt + lengths.answer)
    generator = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            number + 1,  # number 0 would be held out
            round(lengths.prompt),
            torch.randint(trial.config.vocab_size, (n,), generator=generator),
            torch.randn(n - 1, len(taps) * d, generator=generator).to(torch.bfloat16),
            torch.randn(n - 1, d, generator=generator).to(torch.bfloat16),
            torch.rand(n - 1, generator=generator),
            torch.randint(trial.config.draft_vocab_size, (n - 1,), generator=generator),
        )
        for number in range(_SEQUENCES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        meta = {"format": FORMAT, "tap_layers": list(taps), "hidden_size": d}
        write_meta(Path(folder) / "store", meta)
        write_shard(Path(folder) / "store" / "noise.safetensors", samples)
        target = PlainTarget.from_folder(trial.target)
        run = Fit(
            trial.config,
            replace(fit, solved_start=False, start="", validation_every=10**6, answer_tokens=0),
            Store(Path(folder) / "store"),
            torch.arange(trial.config.draft_vocab_size),
            target.embedding,
            target.head,
            Path(folder) / "fit",
        )
        # Schedules are straight lines over the epochs: a few of them tell the others.
        some = sorted({round(i * (fit.epochs - 1) / 3) for i in range(4)})
        cost = [chain_seconds(run, epoch) for epoch in some]
    trained = trained_sequences(lengths, fit)
    mean = statistics.fmean(np.interp(range(fit.epochs), some, cost))
    return trained * chains_of(lengths, fit) * fit.epochs * mean
