"""The target's side of all batches, computed once and kept on the device, flat.

A training of several epochs needs the same rows again and again, and the target's forward over them
costs more than the drafter's step. A row takes a few kilobytes: GPUs have room for millions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.reading import judge
from sgl_entropy.train.samples.batches import chain_count, first_chain
from sgl_entropy.train.samples.store import Entry

# Padded rows of one forward, on a CPU and elsewhere.
_ROWS, _DEVICE_ROWS = 2048, 32768


@dataclass(frozen=True)
class KeptRows:
    """Rows of some entries, one entry after the other.

    Attributes:
        features: bfloat16 [rows, taps * d], of every row but an entry's last.
        final, entropy, best: of the rows that judge chains: bfloat16 [chains, d], float32
            [chains], int64 [chains].
        at: an entry's number -> (its first row in ``features``, its first among the chains).
        columns, prompt_from: what they were made for.
    """

    features: Tensor
    final: Tensor
    entropy: Tensor
    best: Tensor
    at: dict[int, tuple[int, int]]
    columns: tuple[int, ...]
    prompt_from: int | None

    def made_for(self, columns: Sequence[int], prompt_from: int | None) -> bool:
        """Whether batches with these taps and first chains can be made of them."""
        return (tuple(columns), prompt_from) == (self.columns, self.prompt_from)

    def batch(self, entries: Sequence[Entry], rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(features [entries, rows, taps * d], final, entropy, best of their chains). Features
        after an entry's end belong to another one: the caller masks them."""
        device = self.features.device
        begins = torch.tensor([self.at[e.prompt_id][0] for e in entries])
        index = begins[:, None] + torch.arange(rows)
        index = index.clamp(max=len(self.features) - 1).to(device)
        pieces = []
        for entry in entries:
            begin = self.at[entry.prompt_id][1]
            pieces.append(torch.arange(begin, begin + chain_count(entry, self.prompt_from)))
        chains = torch.cat(pieces).to(device)
        return self.features[index], self.final[chains], self.entropy[chains], self.best[chains]


def cached_bytes(entries: Sequence[Entry], taps: int, width: int, prompt_from: int | None) -> int:
    """What ``keep_rows`` keeps of ``entries``, with so many tapped layers of ``width``."""
    rows = sum(entry.length - 2 for entry in entries)
    chains = sum(chain_count(entry, prompt_from) for entry in entries)
    return 2 * rows * taps * width + chains * (2 * width + 12)


@torch.no_grad()
def keep_rows(
    target: PlainTarget,
    tokens: Callable[[Sequence[Entry]], Tensor],
    entries: Sequence[Entry],
    columns: Sequence[int],
    prompt_from: int | None,
    most_gb: float,
) -> KeptRows | None:
    """Run the target over ``entries``, neighbours of similar length together.

    Args:
        tokens: of some entries, padded: int64 [entries, longest], on the target's device.
        most_gb: None is returned where more would be kept.
    """
    device, d = target.device, target.hidden_size
    rows = sum(entry.length - 2 for entry in entries)
    chains = sum(chain_count(entry, prompt_from) for entry in entries)
    if cached_bytes(entries, len(columns), d, prompt_from) > most_gb * 1e9:
        return None
    kept = KeptRows(
        torch.empty((rows, len(columns) * d), dtype=torch.bfloat16, device=device),
        torch.empty((chains, d), dtype=torch.bfloat16, device=device),
        torch.empty(chains, device=device),
        torch.empty(chains, dtype=torch.long, device=device),
        {},
        tuple(columns),
        prompt_from,
    )
    row = chain = 0
    most = _ROWS if device.type == "cpu" else _DEVICE_ROWS
    ordered = sorted(entries, key=lambda entry: (entry.length, entry.prompt_id))
    for part in _parts(ordered, most):
        ids = tokens(part)
        lengths = torch.tensor([entry.length for entry in part])[:, None]
        first = torch.tensor([[first_chain(e.prompt_length, prompt_from)] for e in part])
        column = torch.arange(ids.shape[1] - 1)
        starts = torch.zeros(len(part), dtype=torch.long, device=device)
        out = target.forward(ids[:, :-1], starts, None, tap_layers=kept.columns)
        real = (column < lengths - 2).to(device)
        taps = torch.cat(out.taps, dim=-1)[real].to(torch.bfloat16)
        final = out.final[((column > first) & (column < lengths - 1)).to(device)]
        entropy, best = judge(target, final)
        kept.features[row : row + len(taps)] = taps
        end = chain + len(final)
        kept.final[chain:end] = final.to(torch.bfloat16)
        kept.entropy[chain:end], kept.best[chain:end] = entropy.float(), best
        for entry in part:
            kept.at[entry.prompt_id] = row, chain
            row += entry.length - 2
            chain += chain_count(entry, prompt_from)
    return kept


def _parts(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    """Consecutive entries of at most ``most`` padded rows together (or one entry)."""
    parts: list[list[Entry]] = []
    for entry in entries:
        if parts and entry.length * (len(parts[-1]) + 1) <= most:
            parts[-1].append(entry)
        else:
            parts.append([entry])
    return parts
