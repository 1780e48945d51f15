"""Training-time test: n draft steps of every chain, each against the target's distribution.

EDSD paper, section 3.3, and EAGLE-3: step i is fed the drafter's own output of step i - 1, tokens
and targets move on by one each step, and the loss weights are 0.8^i. A position counts when the
target's most likely token is in the draft vocabulary and the epoch does not leave it out for its
entropy (Mask-p; the mask moves with the target row, as tokens do). Ours: each step is normalised
by the number of its counted positions, so that masking never shrinks the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.train.batches import Batch
from sgl_entropy.train.loss import soft_cross_entropy


@dataclass(frozen=True)
class TargetSide:
    """What stays the target's: its embedding [vocab, d], and its head's rows of the draft
    vocabulary [draft vocab, d], both in the dtype of the matmuls; and the tap scale [taps * d]."""

    embedding: Tensor
    head: Tensor
    tap_scale: Tensor


@dataclass(frozen=True)
class StepFigures:
    """One draft step of a batch: counted rows, summed loss, rows guessed right, all rows."""

    counted: int
    loss: float
    right: int
    rows: int


def unrolled_loss(
    drafter: Drafter, side: TargetSide, batch: Batch, steps: int, decay: float = 0.8
) -> tuple[Tensor, list[StepFigures]]:
    """The weighted loss of ``steps`` draft steps.

    Returns:
        sum_i decay^i * (mean soft cross-entropy over step i's counted rows), and the figures; the
        loss has no gradient where no step counts a row.
    """
    rows = batch.features.shape[1]
    # The id of a target token in the draft vocabulary, -1 outside.
    t2d = drafter.t2d
    draft_id = torch.where(t2d, torch.cumsum(t2d, 0) - 1, -1)
    # Rows that are left out are never looked up: their distributions are not computed.
    final = batch.final[batch.learned].to(side.head.dtype)
    learned_at = torch.cumsum(batch.learned, 0) - 1
    probability = torch.softmax(F.linear(final, side.head).float(), dim=-1).to(final.dtype)
    first_row = torch.cumsum(batch.chains, 0) - batch.chains
    own_row = first_row[:, None] + torch.arange(batch.starts.shape[1])
    working = drafter.lm_head.weight.detach().to(side.head.dtype)

    embeds = F.embedding(batch.following[:, :rows], side.embedding)
    unroll = Unroll(
        drafter, embeds, drafter.fuse_taps(batch.features / side.tap_scale), batch.starts
    )
    total = torch.zeros(())
    figures: list[StepFigures] = []
    for step in range(steps):
        if step:
            tokens = batch.following.gather(1, batch.starts + step)
            unroll.advance(F.embedding(tokens, side.embedding))
        real = torch.arange(batch.starts.shape[1]) < (batch.chains - step)[:, None]
        target_row = (own_row + step).clamp(max=len(batch.learned) - 1)
        label = draft_id[batch.best[target_row]]
        counted = real & (label >= 0) & batch.learned[target_row]
        count = int(counted.sum())
        if not count:
            figures.append(StepFigures(0, 0.0, 0, int(real.sum())))
            continue
        hidden = drafter.norm(unroll.out[counted])
        loss, best = soft_cross_entropy(
            hidden,
            drafter.lm_head.weight,
            working,
            probability[learned_at[target_row[counted]]],
            1.0 / count,
        )
        total = total + decay**step * loss
        right = int((best == label[counted]).sum())
        figures.append(StepFigures(count, loss.item() * count, right, int(real.sum())))
    return total, figures


def sum_figures(figures: Sequence[Sequence[StepFigures]]) -> list[dict[str, float]]:
    """Per draft step over many batches: mean loss of counted rows, and the fraction of all rows
    (counted or not) that were guessed right."""
    out = []
    for step in range(max((len(f) for f in figures), default=0)):
        here = [f[step] for f in figures if len(f) > step]
        out.append(
            {
                "loss": sum(f.loss for f in here) / max(1, sum(f.counted for f in here)),
                "accuracy": sum(f.right for f in here) / max(1, sum(f.rows for f in here)),
            }
        )
    return out
