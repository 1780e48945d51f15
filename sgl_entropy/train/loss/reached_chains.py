"""Which chains go on to the next draft step: all, or only those whose drafts so far were the
target's own tokens (ours).

At inference a draft counts only if all drafts before it were accepted. A training that unrolls
every chain spends half of its later steps on rows that inference never reaches, and learns to go on
from its own mistakes, which are thrown away. ``fit.reached_only`` leaves these rows out.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Chains:
    """Positions of a batch's chains while some of them are dropped.

    Args:
        real: int64 [batch], how many chains of each sequence are real; the others are padding.
        width: chains of the longest sequence.
    """

    def __init__(self, real: Tensor, width: int) -> None:
        self._real, self._first_width = real, width
        # The current column of each chain (flat, as at the start), or -1.
        self._column = torch.arange(width, device=real.device).repeat(len(real))
        self.width = width

    def keep(self, right: Tensor, step: int) -> Tensor:
        """Drop all other chains than ``right``, and those without a row at draft step ``step``.

        Args:
            right: int64 [kept], flat as at the start, rising.

        Returns:
            int64 [batch, width]: the old columns of the chains that stay, sequence by sequence.
            Padding repeats the sequence's first chain. Width 0 = none stays.
        """
        sequence, chain = right // self._first_width, right % self._first_width
        has_row = chain < self._real[sequence] - step
        right, sequence = right[has_row], sequence[has_row]
        staying = torch.bincount(sequence, minlength=len(self._real))
        self.width = int(staying.max())
        place = torch.arange(len(right), device=right.device)
        place = place - (torch.cumsum(staying, 0) - staying)[sequence]
        index = right.new_zeros((len(self._real), self.width))
        index[sequence, place] = self._column[right]
        self._column = torch.full_like(self._column, -1)
        self._column[right] = place
        return index

    def rows(self) -> int:
        """How many real chains are left."""
        return int((self._column >= 0).sum())

    def find(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """For chains ``at``, flat as at the start: which are left (bool), and their current
        positions, flat."""
        column = self._column[at]
        left = column >= 0
        return left, at[left] // self._first_width * self.width + column[left]
