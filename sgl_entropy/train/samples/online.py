"""Training samples without a store: the target computes features when they are needed.

On a GPU this is the fast way: a batch's prefill costs a fraction of its training step, and its
features never leave the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.reading import by_rows, judge, likeliest
from sgl_entropy.train.answers.file import Answered
from sgl_entropy.train.samples.batches import Batch, first_chain
from sgl_entropy.train.samples.device_cache import KeptRows, keep_rows
from sgl_entropy.train.samples.features import features_of
from sgl_entropy.train.samples.shards import Sample
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.schedules import learned_columns


class OnlineStore:
    """Samples computed when they are needed: no storage, one target forward per epoch and sample.

    The numbers equal a stored sample's: features and final states are rounded to bfloat16.

    Args:
        answers: of ``target``, more than one token each.
        path: the file that they come from.
    """

    def __init__(
        self,
        target: PlainTarget,
        answers: Sequence[Answered],
        tap_layers: Sequence[int],
        path: Path,
    ) -> None:
        self.folder, self.tap_layers = path, tuple(tap_layers)
        self._target = target
        self._answers = {one.prompt_id: one for one in answers if one.answer_length > 1}
        self.entries: list[Entry] = []
        flat: list[int] = []
        for number, one in sorted(self._answers.items()):
            self.entries.append(
                Entry(path, number, one.prompt_length, len(one.tokens), len(flat), 0)
            )
            flat += one.tokens
        # After the last sequence come as many zeros as a batch may read there.
        longest = max((entry.length for entry in self.entries), default=0)
        self._flat = torch.tensor([*flat, *[0] * longest], device=target.device)
        self._kept: KeptRows | None = None

    def keep(
        self,
        entries: Sequence[Entry],
        columns: Sequence[int],
        prompt_from: int | None,
        most_gb: float,
    ) -> bool:
        """Compute once what batches of ``entries`` need of the target, and keep it on the device.

        Args:
            columns, prompt_from: of all batches to come.
            most_gb: of all that is kept.

        Returns:
            Whether it is kept; False = it would take more than ``most_gb``.
        """
        self._kept = None
        self._kept = keep_rows(self._target, self._ids, entries, columns, prompt_from, most_gb)
        return self._kept is not None

    def _ids(self, entries: Sequence[Entry]) -> Tensor:
        """Tokens of ``entries``, padded with zeros: int64 [entries, longest]."""
        longest = max(entry.length for entry in entries)
        offsets, lengths = torch.tensor(
            [[e.token_start for e in entries], [e.length for e in entries]]
        ).to(self._flat.device)[..., None]
        column = torch.arange(longest, device=self._flat.device)
        return self._flat[offsets + column].masked_fill(column >= lengths, 0)

    def tokens(self, entry: Entry) -> Tensor:
        """See ``Samples``."""
        return torch.tensor(self._answers[entry.prompt_id].tokens[: entry.length])

    def sample(self, entry: Entry, columns: Sequence[int] | None = None) -> Sample:
        """See ``Samples``."""
        answer = self._answers[entry.prompt_id]
        answer = replace(answer, tokens=answer.tokens[: entry.length])
        layers = self.tap_layers if columns is None else tuple(columns)
        return features_of(self._target, [answer], layers)[0]

    @torch.no_grad()
    def batch(
        self,
        entries: Sequence[Entry],
        columns: Sequence[int],
        steps: int,
        masked_percent: float = 0.0,
        prompt_from: int | None = None,
    ) -> Batch:
        """``collate`` of the entries' samples, on the target's device: from the kept rows, or
        computed in one forward."""
        device, longest = self._target.device, max(entry.length for entry in entries)
        firsts = [first_chain(entry.prompt_length, prompt_from) for entry in entries]
        lengths, first = torch.tensor([[e.length for e in entries], firsts]).to(device)[..., None]
        column = torch.arange(longest, device=device)
        ids = self._ids(entries)
        rows = longest - 2
        following = torch.zeros((len(entries), rows + steps + 1), dtype=torch.long, device=device)
        following[:, : longest - 1] = ids[:, 1:]
        chains = (lengths - 2 - first)[:, 0]
        widest = max(e.length - 2 - f for e, f in zip(entries, firsts, strict=True))
        starts = torch.minimum(first + column[:widest], lengths - 3)
        if self._kept is not None and self._kept.made_for(columns, prompt_from):
            features, final, entropy, best = self._kept.batch(entries, rows)
        else:
            out = self._target.forward(
                ids[:, :-1], torch.zeros_like(lengths[:, 0]), None, tap_layers=tuple(columns)
            )
            features = torch.cat(out.taps, dim=-1)[:, :rows].to(torch.bfloat16)
            final = out.final[(column[:-1] > first) & (column[:-1] < lengths - 1)]
            if masked_percent:
                entropy, best = judge(self._target, final)
            else:
                entropy = final[:, 0]  # not looked at
                parts = [likeliest(self._target, r, z) for r, z in by_rows(self._target, final)]
                best = torch.cat(parts)
        features = features.masked_fill((column[:rows] >= lengths - 2)[..., None], 0)
        if masked_percent:
            learned = learned_columns(entropy, chains, widest, masked_percent)
        else:
            learned = torch.ones(len(final), dtype=torch.bool, device=device)
        return Batch(following, features, starts, chains, final.to(torch.bfloat16), best, learned)
