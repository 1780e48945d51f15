"""Which samples form a training batch, and their padded tensors.

A plan is a pure function of the samples' lengths, the seed and the epoch, so that a resumed run
sees exactly the batches that an unbroken one sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sgl_entropy.train.samples.shards import Sample
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.schedules import learned_rows

# How many sequences are sorted by length together: enough to pad little, few enough to mix.
_SORT_BLOCK = 96


def shortened(entries: Sequence[Entry], answer_length: int) -> list[Entry]:
    """The same samples with answers cut after ``answer_length`` tokens; 0 = whole."""
    if not answer_length:
        return list(entries)
    return [
        replace(entry, length=min(entry.length, entry.prompt_length + answer_length))
        for entry in entries
    ]


def split_validation(entries: Sequence[Entry], every: int) -> tuple[list[Entry], list[Entry]]:
    """(training, validation): every ``every``-th prompt number is held out."""
    held_out = [entry for entry in entries if entry.prompt_id % every == 0]
    kept = [entry for entry in entries if entry.prompt_id % every]
    return kept, held_out


def first_tokens(entries: Sequence[Entry], answer_tokens: int) -> list[Entry]:
    """The first entries with at least ``answer_tokens`` answer tokens together; 0 = all.

    Raises:
        ValueError: there are fewer: a smaller budget must not pass for the requested one.
    """
    if not answer_tokens:
        return list(entries)
    tokens = 0
    for count, entry in enumerate(entries, 1):
        tokens += entry.length - entry.prompt_length
        if tokens >= answer_tokens:
            return list(entries[:count])
    raise ValueError(
        f"fit.answer_tokens is {answer_tokens}, and the store holds {tokens} to learn from"
    )


def first_chain(prompt_length: int, prompt_from: int | None) -> int:
    """The row where a sequence's first chain starts.

    Args:
        prompt_from: None = the prompt's last row, so that answers alone are drafted; otherwise
            this row of the prompt (or its last, in a shorter one).
    """
    last = prompt_length - 1
    return last if prompt_from is None else min(prompt_from, last)


def chain_count(entry: Entry, prompt_from: int | None) -> int:
    """Number of chains in a sequence: from its first to the last one with a token to judge it."""
    return entry.length - 2 - first_chain(entry.prompt_length, prompt_from)


def plan_epoch(
    entries: Sequence[Entry], rows: int, seed: int, epoch: int, prompt_from: int | None = None
) -> list[list[Entry]]:
    """Batches of about ``rows`` chains, each of sequences of similar length, shuffled."""
    chance = random.Random(f"{seed}-{epoch}")
    order = list(entries)
    chance.shuffle(order)
    batches: list[list[Entry]] = []
    for start in range(0, len(order), _SORT_BLOCK):
        block = sorted(
            order[start : start + _SORT_BLOCK], key=lambda e: (e.length, e.answer_rows, e.prompt_id)
        )
        batch: list[Entry] = []
        chains_so_far = 0
        for entry in block:
            chains = chain_count(entry, prompt_from)
            if batch and chains_so_far + chains / 2 > rows:
                batches.append(batch)
                batch, chains_so_far = [], 0
            batch.append(entry)
            chains_so_far += chains
        batches.append(batch)
    chance.shuffle(batches)
    return batches


@dataclass(frozen=True)
class Batch:
    """Samples padded on the right.

    Attributes:
        following: int64 [batch, rows + steps]: the token after each row's.
        features: [batch, rows, taps * d], of every row.
        starts: int64 [batch, chains]: rows where chains start, in order.
        chains: int64 [batch], how many of them are real.
        final: [real chains, d], the target's final states that step 0 learns from, sequence by
            sequence; step j of a chain learns from the row j further on.
        best: int64 [real chains], the target's most likely token at those rows.
        learned: bool [real chains], which of those rows are learned from (Mask-p).
    """

    following: Tensor
    features: Tensor
    starts: Tensor
    chains: Tensor
    final: Tensor
    best: Tensor
    learned: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch there."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def collate(
    samples: Sequence[Sample],
    steps: int,
    masked_percent: float = 0.0,
    prompt_from: int | None = None,
) -> Batch:
    """Pad samples to a batch that ``steps`` draft steps can be run on.

    Args:
        masked_percent: of each sample's rows, the most uncertain ones, that are not learned from.
        prompt_from: see ``first_chain``.
    """
    count, rows = len(samples), max(len(s.tokens) for s in samples) - 2
    firsts = [first_chain(s.prompt_length, prompt_from) for s in samples]
    chains = torch.tensor([len(s.tokens) - 2 - f for s, f in zip(samples, firsts, strict=True)])
    widest = int(chains.max())
    following = torch.zeros((count, rows + steps + 1), dtype=torch.long)
    features = torch.zeros((count, rows, samples[0].features.shape[1]), dtype=torch.bfloat16)
    starts = torch.zeros((count, widest), dtype=torch.long)
    for i, sample in enumerate(samples):
        n = len(sample.tokens)
        following[i, : n - 1] = sample.tokens[1:]
        features[i, : n - 2] = sample.features[: n - 2]
        # Padding chains repeat the last real start, so that they stay in bounds.
        starts[i] = (firsts[i] + torch.arange(widest)).clamp(max=n - 3)
    judged = [(s, slice(first + 1, None)) for s, first in zip(samples, firsts, strict=True)]
    return Batch(
        following,
        features,
        starts,
        chains,
        torch.cat([s.final[rows] for s, rows in judged]),
        torch.cat([s.best[rows] for s, rows in judged]),
        torch.cat([learned_rows(s.entropy[rows], masked_percent) for s, rows in judged]),
    )
