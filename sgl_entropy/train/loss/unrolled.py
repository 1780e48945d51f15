"""Training-time test: n draft steps of every chain, each against the target's distribution.

EDSD paper, section 3.3, and EAGLE-3: step i gets the drafter's own output of step i - 1 as input,
tokens and targets move on by one position each step, and the loss weights are 0.8^i. A position
counts if the target's most likely token is in the draft vocabulary and the epoch does not leave it
out for its entropy (Mask-p; the mask moves with the target row, as tokens do). Ours: each step's
loss is divided by the number of its counted positions, so that masking never shrinks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.train.loss.reached_chains import Chains
from sgl_entropy.train.loss.soft_cross_entropy import soft_cross_entropy
from sgl_entropy.train.samples.batches import Batch


@dataclass(frozen=True)
class TargetSide:
    """The target's fixed part: its embedding [vocab, d], its head's rows for the draft vocabulary
    [draft vocab, d], both in the dtype of the matmuls, and the tap scale [taps * d]."""

    embedding: Tensor
    head: Tensor
    tap_scale: Tensor

    def to(self, device: torch.device) -> TargetSide:
        """The same there."""
        return TargetSide(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class StepFigures:
    """One draft step of a batch: number of counted rows, their summed loss, rows that were guessed
    right, and all rows."""

    counted: int
    loss: float
    right: int
    rows: int


@dataclass(frozen=True)
class StepRows:
    """The rows that one draft step counts.

    Attributes:
        at: int64 [counted], their positions among all chains of the batch, flat.
        target_row: int64 [counted], the target row that judges each.
        label: int64 [counted], the draft id to guess.
        rows: how many rows there are, counted or not.
    """

    at: Tensor
    target_row: Tensor
    label: Tensor
    rows: int

    @property
    def counted(self) -> int:
        return len(self.at)

    def some(self, left: Tensor, rows: int) -> StepRows:
        """Only the rows ``left``, bool [counted], among ``rows`` in all."""
        return StepRows(self.at[left], self.target_row[left], self.label[left], rows)


def step_rows(batch: Batch, t2d: Tensor, steps: int) -> list[StepRows]:
    """The rows of each draft step. They do not depend on the drafter: computed before its work is
    queued, they are the only part of a batch that waits for the device."""
    # The id of a target token in the draft vocabulary, -1 outside.
    draft_id = torch.where(t2d, torch.cumsum(t2d, 0) - 1, -1)
    chain = torch.arange(batch.starts.shape[1], device=t2d.device)
    own_row = (torch.cumsum(batch.chains, 0) - batch.chains)[:, None] + chain
    counts = batch.chains.tolist()
    each_step = []
    for step in range(steps):
        real = chain < (batch.chains - step)[:, None]
        target_row = (own_row + step).clamp(max=len(batch.learned) - 1)
        label = draft_id[batch.best[target_row]]
        counted = real & (label >= 0) & batch.learned[target_row]
        at = counted.flatten().nonzero().squeeze(-1)
        rows = sum(max(0, count - step) for count in counts)
        each_step.append(StepRows(at, target_row.flatten()[at], label.flatten()[at], rows))
    return each_step


def unrolled_loss(
    drafter: Drafter,
    side: TargetSide,
    batch: Batch,
    steps: int,
    decay: float = 0.8,
    counts: Sequence[int] | None = None,
    judged: Sequence[StepRows] | None = None,
    reached_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """The weighted loss of ``steps`` draft steps.

    Args:
        counts: what each step's summed loss is divided by; None = the batch's own counted rows.
            Processes that share a batch pass what they count together.
        judged: ``step_rows`` of the batch; None = they are computed here.
        reached_only: go on with a chain only while its drafts are the target's own. A step's loss
            is still divided by all the rows that it would count, so that it weighs only as much as
            the chains that reach it.

    Returns:
        sum_i decay^i * (soft cross-entropy summed over step i's counted rows / its count), and
        the figures, float64 [steps, 4] as ``StepFigures`` has them (of the rows that were
        reached), on the device: reading them waits for it. The loss has no gradient where no step
        counts a row.
    """
    judged = step_rows(batch, drafter.t2d, steps) if judged is None else judged
    rows = batch.features.shape[1]
    # Rows that are left out are never looked up: their distributions are not computed.
    with record_function("train: target"):
        final = batch.final[batch.learned].to(side.head.dtype)
        learned_at = torch.cumsum(batch.learned, 0) - 1
        probability = torch.softmax(F.linear(final, side.head).float(), dim=-1).to(final.dtype)
    working = drafter.lm_head.weight.detach().to(side.head.dtype)

    embeds = F.embedding(batch.following[:, :rows], side.embedding)
    unroll = Unroll(
        drafter, embeds, drafter.fuse_taps(batch.features / side.tap_scale), batch.starts
    )
    total = torch.zeros((), device=embeds.device)
    figures = torch.tensor([[r.counted, 0.0, 0.0, r.rows] for r in judged], dtype=torch.float64)
    figures = figures.to(embeds.device)
    chains = Chains(batch.chains, batch.starts.shape[1]) if reached_only else None
    right = judged[0].at  # chains whose last draft was the target's
    for step, here in enumerate(judged):
        shared = here.counted if counts is None else counts[step]
        at = here.at
        if step:
            if chains is not None:
                unroll.keep(chains.keep(right, step))
                left, at = chains.find(at)
                here = here.some(left, chains.rows())
                figures[step, 0], figures[step, 3] = here.counted, here.rows
            tokens = batch.following.gather(1, unroll.starts + step)
            unroll.advance(F.embedding(tokens, side.embedding))
        right = here.at[:0]
        if here.counted:
            with record_function("train: head"):
                loss, best = soft_cross_entropy(
                    drafter.norm(unroll.out.flatten(0, 1)[at]),
                    drafter.lm_head.weight,
                    working,
                    probability[learned_at[here.target_row]],
                    1.0 / shared,
                )
            total = total + decay**step * loss
            figures[step, 1] = loss.detach().double() * shared
            figures[step, 2] = (best == here.label).sum()
            if chains is not None:
                right = here.at[best == here.label]
    return total, figures


class SharedLoss(nn.Module):
    """``unrolled_loss`` of one process's share of a batch, as a module for
    DistributedDataParallel, which averages gradients where ours are parts of a sum."""

    def __init__(
        self,
        drafter: Drafter,
        side: TargetSide,
        decay: float,
        processes: int,
        reached_only: bool = False,
    ) -> None:
        super().__init__()
        self.drafter, self.side = drafter, side
        self.decay, self.processes, self.reached_only = decay, processes, reached_only

    def forward(
        self,
        batch: Batch | None,
        steps: int,
        counts: Sequence[int] | None,
        judged: Sequence[StepRows] | None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            batch: None where this process has no sequence of the batch.
            counts: counted rows of all processes together, a step each; None = the batch's own.
            judged: ``step_rows`` of the batch.

        Returns:
            ``processes`` times this share of the loss, and the share's figures. Among several
            processes the loss has a gradient to every weight, though it may be zero.
        """
        loss, figures = torch.zeros(()), torch.zeros((steps, 4), dtype=torch.float64)
        if batch is not None:
            loss, figures = unrolled_loss(
                self.drafter, self.side, batch, steps, self.decay, counts, judged, self.reached_only
            )
        if self.processes == 1:
            return loss, figures
        # Every process takes part in every sum of gradients, also one that counts no row.
        nothing = torch.stack([weight.sum() for weight in self.drafter.parameters()]).sum() * 0.0
        return loss.to(nothing.device) * self.processes + nothing, figures


@dataclass(frozen=True)
class StepMeans:
    """One draft step over many batches: mean loss of counted rows, and the share of all rows
    (counted or not) that were guessed right."""

    loss: float
    accuracy: float


def sum_figures(figures: Sequence[Sequence[StepFigures]]) -> list[StepMeans]:
    """The means of each draft step over many batches."""
    out = []
    for step in range(max((len(f) for f in figures), default=0)):
        here = [f[step] for f in figures if len(f) > step]
        out.append(
            StepMeans(
                sum(f.loss for f in here) / max(1, sum(f.counted for f in here)),
                sum(f.right for f in here) / max(1, sum(f.rows for f in here)),
            )
        )
    return out
