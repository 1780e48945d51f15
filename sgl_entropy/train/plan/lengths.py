"""Lengths of a training's sequences: of the stored ones, and drawn for those to come. (Ours.)"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgl_entropy.train.answers.file import Answered
from sgl_entropy.train.prompts.order import Prompt, worker_queue
from sgl_entropy.train.samples.batches import first_tokens, shortened, split_validation
from sgl_entropy.train.samples.store import Entry, Store
from sgl_entropy.train.settings.file import GenerateSettings
from sgl_entropy.train.settings.fit import FitSettings

# The place of a sequence that is answered, but has no features in the store.
ANSWERED = Path("answers.jsonl")

# How many of the small target's greedy answers end before so many tokens: to 16,384 of our
# prompts, written on a GPU (train-gpu.toml). Prompts of up to 512 tokens, and longer ones, which
# come from long conversations and get long answers.
_TOKENS = (2, 32, 64, 96, 128, 160, 192, 224, 256)
_TO_SHORT = (0.0, 0.037, 0.103, 0.22, 0.305, 0.379, 0.447, 0.506, 0.547)
_TO_LONG = (0.0, 0.013, 0.053, 0.127, 0.174, 0.205, 0.231, 0.25, 0.27)


@dataclass(frozen=True)
class Lengths:
    """What a training is made of.

    Attributes:
        entries: all sequences, with those that validate, in the order of their prompt ids. Those
            still to be answered have no shard, and drawn lengths; those that are answered, but
            have no features yet, have ``ANSWERED`` as their shard.
        origin: where the answers' lengths come from.
        shared: tokens that all prompts begin with (a chat template's head), at least 1.
    """

    entries: tuple[Entry, ...]
    origin: str = ""
    shared: int = 1

    @property
    def sequences(self) -> int:
        return len(self.entries)

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return sum(entry.length for entry in self.entries)

    @property
    def answer_tokens(self) -> int:
        return sum(entry.length - entry.prompt_length for entry in self.entries)

    @property
    def new(self) -> list[Entry]:
        """Those that are not answered yet."""
        return [entry for entry in self.entries if entry.shard == Path()]

    @property
    def unread(self) -> list[Entry]:
        """Those that are answered, but have no features in the store."""
        return [entry for entry in self.entries if entry.shard == ANSWERED]

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return statistics.fmean(entry.prompt_length for entry in self.entries)

    @property
    def answer(self) -> float:
        """Mean tokens of an answer."""
        return self.answer_tokens / self.sequences

    def learned(self, fit: FitSettings) -> list[Entry]:
        """The sequences that an epoch learns from; all, where they are fewer than it asks for.

        Raises:
            ValueError: all are held out.
        """
        kept, _ = self._split(fit)
        if not kept:
            raise ValueError(
                f"fit.validation_every is {fit.validation_every}: it holds out all "
                f"{self.sequences} sequences"
            )
        there = sum(entry.length - entry.prompt_length for entry in kept)
        return first_tokens(kept, min(fit.answer_tokens, there))

    def held_out(self, fit: FitSettings) -> list[Entry]:
        """The sequences that validate."""
        return self._split(fit)[1]

    def _split(self, fit: FitSettings) -> tuple[list[Entry], list[Entry]]:
        return split_validation(shortened(self.entries, fit.answer_length), fit.validation_every)

    def prompt_from(self, fit: FitSettings) -> int | None:
        """The row of a prompt that learning starts at; None = answers alone."""
        return self.shared - 1 if fit.prompt_rows else None


def drawn(prompt_id: int, prompt: int, answer: int) -> Entry:
    """A sequence that is not stored, of so many tokens."""
    return Entry(Path(), prompt_id, prompt, prompt + answer, 0, 0)


def expected_lengths(
    prompts: Sequence[Prompt],
    given: GenerateSettings,
    store: Store | None,
    answered: Sequence[Answered] = (),
) -> Lengths:
    """The sequences that are stored or answered, and those that workers will still answer.

    The lengths of answers to come are drawn with a fixed seed: from those of the known answers, or
    else as the small target's are, cut at the longest allowed.
    """
    stored = list(store.entries) if store is not None else []
    done = {entry.prompt_id for entry in stored}
    unread = [
        Entry(ANSWERED, one.prompt_id, one.prompt_length, len(one.tokens), 0, 0)
        for one in answered
        if one.answer_length > 1 and one.prompt_id not in done
    ]
    known = [*stored, *unread]
    answers = [entry.length - entry.prompt_length for entry in known]
    done |= {one.prompt_id for one in answered}
    todo = [prompt for prompt in prompts if prompt.prompt_id not in done]
    more = _to_come(todo, given, answers)
    origin = f"{len(stored)} stored answers"
    if unread:
        origin = f"{len(stored)} stored answers, {len(unread)} more in {ANSWERED}"
    if not known:
        origin = f"assumed: answers as the small target's, of at most {given.max_new_tokens} tokens"
    entries = sorted([*known, *more], key=lambda entry: entry.prompt_id)
    return Lengths(tuple(entries), origin, _shared([prompt.tokens for prompt in prompts]))


def _to_come(
    todo: Sequence[Prompt], given: GenerateSettings, answers: Sequence[int]
) -> list[Entry]:
    """What workers will answer, in their order, until there are enough tokens.

    Args:
        answers: the lengths of known answers.
    """
    chance = random.Random(0)
    workers = min(given.workers, len(todo))
    out = []
    for number in range(workers):
        left = -(-(given.answer_tokens - sum(answers)) // workers)
        for prompt in worker_queue(todo, number, workers):
            if left <= 0:
                break
            if answers:
                answer = chance.choice(answers)
            else:
                ended = _TO_LONG if len(prompt.tokens) > 512 else _TO_SHORT
                answer = min(_answer_length(ended, chance.random()), given.max_new_tokens)
            out.append(drawn(prompt.prompt_id, len(prompt.tokens), answer))
            left -= answer
    return out


def _answer_length(ended: Sequence[float], share: float) -> int:
    """Tokens of an answer that is longer than a share of all. Beyond the measured lengths, answers
    are assumed to end as steadily as over their last quarter."""
    if share < ended[-1]:
        return round(float(np.interp(share, ended, _TOKENS)))
    quarter = math.log((1 - ended[-3]) / (1 - ended[-1])) / (_TOKENS[-1] - _TOKENS[-3])
    return round(_TOKENS[-1] + math.log((1 - ended[-1]) / (1 - share)) / quarter)


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with, at least 1: as many as the first and the last in
    sorted order."""
    pairs = zip(min(prompts), max(prompts), strict=False)
    return max(1, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
