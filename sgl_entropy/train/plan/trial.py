"""Seconds and memory of the long stages, from a few real steps on the devices that will take them.

Each stage is tried in processes of its own, as many as will work at once; what a few steps took is
scaled by the tokens, or the chains, that are to come. (Ours.)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.target.embedding import read_embedding_and_head
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.decode import Decoding
from sgl_entropy.train.answers.file import Answered, in_batches
from sgl_entropy.train.answers.slots import Pace, Slots
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.peak_memory import in_own_processes
from sgl_entropy.train.machine.processes import ProcessGroup, device_of
from sgl_entropy.train.plan.counts import keeps_features, kept_bytes, unrolled_shares
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.prompts.order import PREFILL_ROWS, Prompt, next_prefill, worker_queue
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.samples.features import features_of
from sgl_entropy.train.samples.generate import recording_slots
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.shards import Sample, write_shard
from sgl_entropy.train.samples.store import Entry, Samples, Store, StoreMeta, write_meta
from sgl_entropy.train.settings.fit import FitSettings
from sgl_entropy.train.workspace import Workspace

# What is timed: prefills (or batches of features), decode steps, optimizer steps.
_PREFILLS, _DECODE_STEPS, _BATCHES = 6, 8, 20

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Trial:
    """What is to be tried. Picklable.

    Attributes:
        config: of the drafter.
        dtype: of the target's weights and matmuls.
    """

    work: Workspace
    config: DrafterConfig
    lengths: Lengths
    dtype: str

    @property
    def fit(self) -> FitSettings:
        return self.work.settings.fit

    def target_on(self, device: str) -> PlainTarget:
        """The target, loaded there."""
        return PlainTarget.from_folder(self.work.target, getattr(torch, self.dtype), device)


@dataclass(frozen=True)
class Cost:
    """Expected wall seconds of a stage, and bytes that its processes need together: of the GPU
    where they use one, else of main memory."""

    seconds: float = 0.0
    memory: int = 0


def data_cost(trial: Trial) -> Cost:
    """Of the answers that are not there yet, and of the features that the store lacks."""
    written, read = answers_cost(trial), Cost()
    if not trial.fit.online:
        workers = trial.work.settings.generate.workers
        read = features_cost(trial, trial.lengths.unread, workers)
    return Cost(written.seconds + read.seconds, max(written.memory, read.memory))


def answers_cost(trial: Trial) -> Cost:
    """Of the answers that are not there yet, with their features where there will be a store."""
    new = trial.lengths.new
    if not new:
        return Cost()
    workers, device = min(trial.work.settings.generate.workers, len(new)), "cpu"
    if trial.fit.online:  # one process decodes them
        workers, device = 1, device_of(0)
    jobs = [_AnswerJob(trial, number, workers, device) for number in range(workers)]
    rates = in_own_processes(_ready_slots, _answer_rate, jobs, device)
    answer_tokens = sum(entry.length - entry.prompt_length for entry in new)
    slowest = min(one.result.tokens_per_s for one in rates)
    # The slots grow with what they hold, the target does not.
    memory = sum(
        one.memory.held
        - one.memory.bare
        + (one.memory.peak - one.memory.held) * one.result.longest_over_tried
        for one in rates
    )
    return Cost(answer_tokens / workers / slowest, round(memory))


def features_cost(trial: Trial, entries: Sequence[Entry], workers: int) -> Cost:
    """Of the target's forward over ``entries``, which are answered, in so many processes."""
    if not entries:
        return Cost()
    workers = min(workers, len(entries))
    jobs = [(trial, tuple(entries), device_of(number)) for number in range(workers)]
    rates = in_own_processes(_reader, _feature_rate, jobs, device_of(0))
    slowest = min(one.result for one in rates)
    tokens = sum(entry.length for entry in entries)
    return Cost(tokens / workers / slowest, sum(one.memory.needed for one in rates))


def fit_cost(trial: Trial) -> Cost:
    """Of all optimizer steps, and of the target's share where it computes features online.

    Raises:
        ValueError: the largest batch does not fit on the GPU.
    """
    try:
        (one,) = in_own_processes(_noise_fit, _fit_seconds, [trial], device_of(0))
    except torch.cuda.OutOfMemoryError:
        raise ValueError(
            f"a largest batch does not fit on {torch.cuda.get_device_name()}: lower fit.rows"
        ) from None
    cost = Cost(one.result, one.memory.needed)
    lengths, fit = trial.lengths, trial.fit
    if fit.online and keeps_features(trial.config, lengths, fit):
        seen = [*lengths.learned(fit), *lengths.held_out(fit)]
        once = features_cost(trial, seen, 1).seconds
        cost = Cost(cost.seconds + once, cost.memory + kept_bytes(trial.config, lengths, fit))
    return cost


def padded_rows(batch: Sequence[Entry]) -> int:
    """Rows of a batch, padding included."""
    return len(batch) * max(entry.length for entry in batch)


def _spread(items: Sequence[T], wanted: int, size: Callable[[T], int]) -> list[T]:
    """The middle ones of ``wanted`` equal parts of the items, in the order of ``size``."""
    order = sorted(items, key=size)
    wanted = min(wanted, len(order))
    return [order[(2 * i + 1) * len(order) // (2 * wanted)] for i in range(wanted)]


def _seconds(work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    began = time.perf_counter()
    work(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@dataclass(frozen=True)
class _AnswerJob:
    """The part of worker ``number`` of ``workers``."""

    trial: Trial
    number: int
    workers: int
    device: str


@dataclass(frozen=True)
class _ReadySlots:
    """Empty slots, when they will be refilled, and the prompts to answer, whose tokens are zeros;
    the length of each answer by prompt id."""

    slots: Slots[Any]
    pace: Pace
    queue: list[Prompt]
    answers: dict[int, int]


@dataclass(frozen=True)
class _AnswerRate:
    """``longest_over_tried``: the most tokens of a sequence, over those that slots held here."""

    tokens_per_s: float
    longest_over_tried: float


def _ready_slots(job: _AnswerJob) -> _ReadySlots:
    trial, given = job.trial, job.trial.work.settings.generate
    answers = {e.prompt_id: e.length - e.prompt_length for e in trial.lengths.new}
    prompts = [Prompt(e.prompt_id, (0,) * e.prompt_length) for e in trial.lengths.new]
    queue = worker_queue(prompts, job.number, job.workers)
    target, most = trial.target_on(job.device), given.max_new_tokens + _DECODE_STEPS + 2
    if trial.fit.online:
        decoding = Decoding(most, given.slots)
        slots = decoding.slots_for(target, queue)
        return _ReadySlots(slots, decoding.pace(target.device), queue, answers)
    longest, count = max(len(prompt.tokens) for prompt in queue), min(given.slots, len(queue))
    recording = recording_slots(target, count, longest, most, trial.work.stored_layers)
    return _ReadySlots(recording, Pace(), queue, answers)


def _answer_rate(ready: _ReadySlots) -> _AnswerRate:
    """Answer tokens a second, from a few prefills and decode steps of full slots."""
    slots, queue, count = ready.slots, ready.queue, len(ready.slots)
    prefills, left = [], list(queue)
    while left:
        prefills.append(next_prefill(left, count, ready.pace.prefill_rows))
    parts = _spread(prefills, _PREFILLS, _padded)
    slots.admit(min(parts, key=_padded)[:1], range(1))  # makes kernels
    took = sum(_seconds(slots.admit, part, range(len(part))) for part in parts)
    prefill = took / sum(map(_padded, parts)) * sum(map(_padded, prefills))
    # From here on all slots are taken. A step attends over the longest one: neighbours are of
    # similar prompts, and some answer is always near its end.
    own = [ready.answers[prompt.prompt_id] for prompt in queue]
    prompt = sum(n * len(one.tokens) for n, one in zip(own, queue, strict=True)) / sum(own)
    length = round(prompt + max(own))
    _fill(slots, length)
    slots.step()  # makes kernels
    step = statistics.median(_seconds(slots.step) for _ in range(_DECODE_STEPS))
    # Slots wait until several are idle before they are filled again, at most as long as the
    # longest answer is under way; and for the next look.
    waiting = (min(ready.pace.refilled, count) - 1) / 2
    busy = max(count - waiting, count * statistics.fmean(own) / max(own))
    steps = sum(own) / busy * (1 + (ready.pace.look - 1) / 2 / statistics.fmean(own))
    longest = max(len(one.tokens) for one in queue) + max(own)
    return _AnswerRate(sum(own) / (prefill + steps * step), longest / length)


def _fill(slots: Slots[Any], length: int) -> None:
    """Sequences of ``length`` tokens in all slots. They are written: zeros that were never written
    take no memory, and no time to read."""
    slots.lengths.fill_(length - _DECODE_STEPS // 2)
    slots.running.fill_(True)
    slots.cache.resize(length + _DECODE_STEPS)
    for tensor in (*slots.cache.keys, *slots.cache.values):
        tensor.fill_(0.01)
    for kept in vars(slots.writer).values():
        if isinstance(kept, torch.Tensor):
            kept[:, :length] = 0


def _padded(part: Sequence[Prompt]) -> int:
    """Rows of a prefill, padding included."""
    return len(part) * max(len(prompt.tokens) for prompt in part)


def _reader(
    job: tuple[Trial, tuple[Entry, ...], str],
) -> tuple[PlainTarget, list[list[Answered]], tuple[int, ...]]:
    """The target, and a few batches of the lengths of ``entries``: their tokens are zeros."""
    trial, entries, device = job
    target = trial.target_on(device)
    ordered = sorted(entries, key=lambda entry: entry.length)
    blank = [Answered(e.prompt_id, e.prompt_length, (0,) * e.length) for e in ordered]
    parts = _spread(list(in_batches(blank, PREFILL_ROWS)), _PREFILLS, len)
    stored = () if trial.fit.online else trial.work.stored_layers
    return target, parts, stored or trial.config.target_layer_ids or ()


def _feature_rate(ready: tuple[PlainTarget, list[list[Answered]], tuple[int, ...]]) -> float:
    """Tokens a second."""
    target, parts, layers = ready
    features_of(target, parts[0], layers)  # makes kernels
    took = sum(_seconds(features_of, target, part, layers) for part in parts)
    return sum(len(one.tokens) for part in parts for one in part) / took


@dataclass(frozen=True)
class _NoiseFit:
    """A fit that is thrown away, on noise: batches of some epochs, and the widest one."""

    fit: Fit
    batches: dict[int, list[list[Entry]]]
    widest: list[Entry]
    trial: Trial
    folder: tempfile.TemporaryDirectory[str]


def _noise_fit(trial: Trial) -> _NoiseFit:
    """Some batches of the real plan, spread over their widths, of sequences as long as planned."""
    fit = trial.fit
    entries, first = trial.lengths.learned(fit), trial.lengths.prompt_from(fit)
    # Schedules are straight lines over the epochs: a few of them tell the others.
    some = sorted({round(i * (fit.epochs - 1) / 3) for i in range(4)})
    plans = {epoch: plan_epoch(entries, fit.rows, fit.seed, epoch, first) for epoch in some}
    widest = max(plans[some[-1]], key=padded_rows)
    picked = {epoch: _spread(plans[epoch], _BATCHES // len(some), _longest) for epoch in some}
    every = [entry for plan in (*picked.values(), [widest]) for batch in plan for entry in batch]
    folder = tempfile.TemporaryDirectory()
    made = _fit_on_noise(trial, list(dict.fromkeys(every)), Path(folder.name))
    known = {entry.prompt_id: entry for entry in made.samples.train}

    def own(batch: Sequence[Entry]) -> list[Entry]:
        return [known[entry.prompt_id] for entry in batch]

    batches = {epoch: list(map(own, plan)) for epoch, plan in picked.items()}
    return _NoiseFit(made, batches, own(widest), trial, folder)


def _longest(batch: Sequence[Entry]) -> int:
    return max(entry.length for entry in batch)


def _fit_seconds(ready: _NoiseFit) -> float:
    """Of all optimizer steps."""
    fit, lengths, learn = ready.trial.fit, ready.trial.lengths, ready.fit.learn
    entries, first = lengths.learned(fit), lengths.prompt_from(fit)
    learn(ready.widest, fit.epochs - 1, 10**6)  # makes kernels, and the peak of memory
    costs = []
    for epoch, plan in ready.batches.items():
        took = sum(_seconds(learn, batch, epoch, 10**6) for batch in plan)
        costs.append(took / sum(chain_count(entry, first) for batch in plan for entry in batch))
    chains = sum(chain_count(entry, first) for entry in entries)
    by_epoch = np.interp(range(fit.epochs), list(ready.batches), costs)
    shares = [statistics.fmean(unrolled_shares(fit, epoch)) for epoch in range(fit.epochs)]
    return float(chains * by_epoch.dot(shares))


def _fit_on_noise(trial: Trial, entries: Sequence[Entry], folder: Path) -> Fit:
    """On samples of the lengths of ``entries``, under their prompt ids; none is held out."""
    config, given, device = trial.config, trial.fit, device_of(0)
    taps = config.target_layer_ids or ()
    noise = [_noise(trial, entry) for entry in entries]
    store: Samples
    if given.online:
        target = trial.target_on(device)
        answers = [Answered(s.prompt_id, s.prompt_length, tuple(s.tokens.tolist())) for s in noise]
        store = OnlineStore(target, answers, taps, folder)
    else:
        write_meta(folder / "store", StoreMeta(taps, config.target_hidden_size))
        write_shard(folder / "store" / "noise.safetensors", noise)
        store = Store(folder / "store")
    kept = given.online and keeps_features(config, trial.lengths, given)
    settings = replace(
        given,
        solved_start=False,
        reached_only=False,  # of noise, nothing would be
        start="",
        validation_every=10**9,
        answer_tokens=0,
        hold_gb=given.hold_gb if kept else 0.0,
    )
    vocabulary = torch.arange(config.draft_vocab_size)
    sides = read_embedding_and_head(trial.work.target)
    group = ProcessGroup(device=torch.device(device))
    return Fit(config, settings, store, vocabulary, *sides, folder / "fit", group)


def _noise(trial: Trial, entry: Entry) -> Sample:
    config, n = trial.config, entry.length
    chance = torch.Generator().manual_seed(entry.prompt_id)
    tokens = torch.randint(config.draft_vocab_size, (n,), generator=chance)
    tokens[: trial.lengths.shared] = 0
    d = config.target_hidden_size
    return Sample(
        entry.prompt_id,
        entry.prompt_length,
        tokens,
        torch.randn(n - 1, config.tap_width, generator=chance).to(torch.bfloat16),
        torch.randn(n - 1, d, generator=chance).to(torch.bfloat16),
        torch.rand(n - 1, generator=chance),
        torch.randint(config.draft_vocab_size, (n - 1,), generator=chance),
    )
