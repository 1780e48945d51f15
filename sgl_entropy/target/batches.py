"""Texts of several lengths in one forward of the plain target, with little padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget


def by_length(lengths: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in groups of neighbours by length, the short ones first.

    Returns:
        Groups of at most ``rows`` texts and ``tokens`` tokens, padding included; a text longer
        than ``tokens`` is a group of its own.
    """
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if out and len(out[-1]) < rows and (len(out[-1]) + 1) * lengths[i] <= tokens:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def padded(target: PlainTarget, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [batch, longest], right-padded, and the lengths, on the target's device."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.zeros((len(texts), int(lengths.max())), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    return ids.to(target.device), lengths.to(target.device)
