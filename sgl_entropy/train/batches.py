"""Which samples meet in a training step, and their padded tensors.

A plan is a pure function of the samples' lengths, the seed and the epoch, so that a resumed run
sees exactly the batches that an unbroken one sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.train.schedules import learned_rows
from sgl_entropy.train.store import Entry, Sample

# Sequences sorted by length together: large enough to pad little, small enough to mix.
_SORT_BLOCK = 96


def split_validation(entries: Sequence[Entry], every: int) -> tuple[list[Entry], list[Entry]]:
    """(training, validation): every ``every``-th prompt number is held out."""
    held = [entry for entry in entries if entry.prompt_id % every == 0]
    kept = [entry for entry in entries if entry.prompt_id % every]
    return kept, held


def plan_epoch(entries: Sequence[Entry], rows: int, seed: int, epoch: int) -> list[list[Entry]]:
    """Batches of about ``rows`` answer rows, each of sequences of similar length, shuffled."""
    chance = random.Random(f"{seed}-{epoch}")
    order = list(entries)
    chance.shuffle(order)
    batches: list[list[Entry]] = []
    for start in range(0, len(order), _SORT_BLOCK):
        block = sorted(
            order[start : start + _SORT_BLOCK], key=lambda e: (e.length, e.answer_rows, e.prompt_id)
        )
        batch: list[Entry] = []
        held = 0
        for entry in block:
            if batch and held + entry.answer_rows / 2 > rows:
                batches.append(batch)
                batch, held = [], 0
            batch.append(entry)
            held += entry.answer_rows
        batches.append(batch)
    chance.shuffle(batches)
    return batches


@dataclass(frozen=True)
class Batch:
    """Samples padded on the right.

    Attributes:
        following: int64 [batch, rows + steps]: the token after each row's.
        features: [batch, rows, taps * d], of every row.
        starts: int64 [batch, chains]: rows where chains start, the prompt's last one first.
        chains: int64 [batch], how many of them are real.
        final: [real chains, d], the target's final states that step 0 learns from, sequence by
            sequence; step j of a chain learns from the row j further on.
        learned: bool [real chains], which of those rows are learned from (Mask-p).
    """

    following: Tensor
    features: Tensor
    starts: Tensor
    chains: Tensor
    final: Tensor
    learned: Tensor

    @property
    def real(self) -> Tensor:
        """bool [batch, chains]."""
        return torch.arange(self.starts.shape[1]) < self.chains[:, None]


def collate(samples: Sequence[Sample], steps: int, masked_percent: float = 0.0) -> Batch:
    """Pad samples to a batch that ``steps`` draft steps can be run on.

    Args:
        masked_percent: of each sample's rows, the most uncertain ones, that are not learned from.
    """
    count, rows = len(samples), max(len(s.tokens) for s in samples) - 2
    chains = torch.tensor([s.answer_rows for s in samples])
    widest = int(chains.max())
    following = torch.zeros((count, rows + steps + 1), dtype=torch.long)
    features = torch.zeros((count, rows, samples[0].features.shape[1]), dtype=torch.bfloat16)
    starts = torch.zeros((count, widest), dtype=torch.long)
    for i, sample in enumerate(samples):
        n = len(sample.tokens)
        following[i, : n - 1] = sample.tokens[1:]
        features[i, : n - 2] = sample.features[: n - 2]
        first = sample.prompt_length - 1
        # Padding chains repeat the last real start, so that they stay in bounds.
        starts[i] = (first + torch.arange(widest)).clamp(max=first + sample.answer_rows - 1)
    final = torch.cat([s.final for s in samples])
    learned = torch.cat([learned_rows(s.entropy, masked_percent) for s in samples])
    return Batch(following, features, starts, chains, final, learned)
