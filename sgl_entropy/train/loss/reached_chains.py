"""Which chains are unrolled on: all, or those alone whose drafts so far were the target's (ours).

At inference a draft step is looked at only if all drafts before it were accepted. A training that
unrolls every chain spends half its later steps on rows that are never asked for, and learns to go
on from its own mistakes, which are thrown away. ``fit.reached_only`` leaves them out.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Chains:
    """Where the chains of a batch lie while some of them are left behind.

    Args:
        real: int64 [batch], how many chains of each sequence are real; the others are padding.
        width: chains of the longest sequence.
    """

    def __init__(self, real: Tensor, width: int) -> None:
        self._real, self._first_width = real, width
        # Of each chain, flat as at the start: its column now, or -1.
        self._column = torch.arange(width, device=real.device).repeat(len(real))
        self.width = width

    def keep(self, right: Tensor, step: int) -> Tensor:
        """Leave behind all but some chains, and those that have no row left at draft step ``step``.

        Args:
            right: int64 [kept], flat as at the start, rising.

        Returns:
            int64 [batch, width]: the columns until now of those that stay, sequence by sequence.
            Padding repeats the sequence's first chain. Width 0 = none stays.
        """
        sequence, chain = right // self._first_width, right % self._first_width
        has_row = chain < self._real[sequence] - step
        right, sequence = right[has_row], sequence[has_row]
        held = torch.bincount(sequence, minlength=len(self._real))
        self.width = int(held.max())
        place = torch.arange(len(right), device=right.device)
        place = place - (torch.cumsum(held, 0) - held)[sequence]
        index = right.new_zeros((len(self._real), self.width))
        index[sequence, place] = self._column[right]
        self._column = torch.full_like(self._column, -1)
        self._column[right] = place
        return index

    def rows(self) -> int:
        """Real chains that are left."""
        return int((self._column >= 0).sum())

    def find(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Of chains, flat as at the start: which are left, bool, and where those lie now, flat."""
        column = self._column[at]
        left = column >= 0
        return left, at[left] // self._first_width * self.width + column[left]
