"""Noise on the features of training batches (EAGLE's augmentation)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def feature_noise(
    rows: Sequence[int], places: Sequence[int], like: Tensor, seed: int, step: int
) -> Tensor:
    """Uniform noise between -1 and 1. It depends only on seed, step and sequence, not on padding or
    on the process that has the sequence.

    Args:
        rows: how many rows of each sequence are real.
        places: of each sequence in the whole batch.
        like: [sequences, padded rows, columns]; gives shape and device.

    Returns:
        float32 [sequences, padded rows, columns]; zero where there is padding.
    """
    draws = torch.Generator(like.device)
    noise = torch.zeros(like.shape, device=like.device)
    for sequence, (count, place) in enumerate(zip(rows, places, strict=True)):
        digest = hashlib.sha256(f"{seed} {step} {place}".encode()).digest()
        draws.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        noise[sequence, :count].uniform_(-1, 1, generator=draws)
    return noise
