"""All draft chains of a sequence at once: every verified row starts its own chain.

A chain that starts at row t sees the verified rows up to t, and its own drafted rows alone. So
step j of all chains together is one batched computation: attention over the verified rows' keys,
plus one more score for each earlier drafted row of the same chain (the diagonals of EAGLE-3's
training-time test). Training and offline evaluation share this; it equals the row-by-row
reference in ``model.draft_chain``, and a test compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_entropy.drafter.model import Drafter


class Unroll:
    """The chains of a padded batch of sequences.

    Args:
        drafter: either kind.
        embeds: [batch, rows, d]: row t holds the embedding of token t + 1.
        features: [batch, rows, d]: ``fuse_taps`` of the target's states at token t.
        starts: int64 [batch, chains]: the rows where chains start. Padding may repeat any row.
    """

    def __init__(self, drafter: Drafter, embeds: Tensor, features: Tensor, starts: Tensor) -> None:
        self.drafter = drafter
        self.starts = starts
        self.step = 0
        batch, rows, _ = embeds.shape
        row = torch.arange(rows, device=starts.device)
        positions = row.expand(batch, rows)
        residual, mixed = drafter.mix(embeds, features)
        keys, values = drafter.keys_values(mixed, positions)
        # [batch, kv_heads, rows, head_dim]
        self._keys, self._values = keys.transpose(1, 2), values.transpose(1, 2)
        self._mask = row <= starts[..., None]
        self._own: list[tuple[Tensor, Tensor]] = []
        self.out = drafter.finish(
            take_rows(residual, starts),
            self._attend(drafter.queries(take_rows(mixed, starts), starts)),
        )

    def advance(self, embeds: Tensor) -> Tensor:
        """The next step of every chain: embeds [batch, chains, d] -> ``out`` of the same shape."""
        self.step += 1
        positions = self.starts + self.step
        residual, mixed = self.drafter.mix(embeds, self.out)
        self._own.append(self.drafter.keys_values(mixed, positions))
        self.out = self.drafter.finish(
            residual, self._attend(self.drafter.queries(mixed, positions))
        )
        return self.out

    def keep(self, index: Tensor) -> None:
        """Go on with some chains alone: int64 [batch, kept], columns of ``out``. Padding may
        repeat any."""

        def kept(x: Tensor) -> Tensor:
            flat = x.flatten(2)
            return take_rows(flat, index).view(*index.shape, *x.shape[2:])

        self.starts = self.starts.gather(1, index)
        self._mask = kept(self._mask)
        self._own = [(kept(key), kept(value)) for key, value in self._own]
        self.out = kept(self.out)

    def _attend(self, query: Tensor) -> Tensor:
        """[batch, chains, heads, head_dim] -> [batch, chains, heads * head_dim]."""
        batch, chains, heads, head_dim = query.shape
        kv_heads, rows = self._keys.shape[1], self._keys.shape[2]
        group = heads // kv_heads
        query = query.view(batch, chains, kv_heads, group, head_dim) * head_dim**-0.5
        flat = query.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * chains, head_dim)
        scores = torch.matmul(flat, self._keys.to(flat.dtype).transpose(-1, -2))
        scores = scores.view(batch, kv_heads, group, chains, rows).float()
        scores = scores.masked_fill(~self._mask[:, None, None], float("-inf"))
        # One more column for each earlier drafted row of the chain itself.
        own = [
            (query * key.unsqueeze(3)).sum(-1, dtype=torch.float32).permute(0, 2, 3, 1)[..., None]
            for key, _ in self._own
        ]
        weights = torch.softmax(torch.cat([scores, *own], dim=-1), dim=-1).to(flat.dtype)
        verified = weights[..., :rows].reshape(batch, kv_heads, group * chains, rows)
        out = torch.matmul(verified, self._values.to(flat.dtype))
        out = out.view(batch, kv_heads, group, chains, head_dim).permute(0, 3, 1, 2, 4)
        for number, (_, value) in enumerate(self._own):
            weight = weights[..., rows + number].permute(0, 3, 1, 2)[..., None]
            out = out + weight * value.unsqueeze(3)
        return out.reshape(batch, chains, heads * head_dim)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [batch, n, width], rows int64 [batch, m] -> [batch, m, width]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
