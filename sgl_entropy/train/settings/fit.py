"""How a drafter is fitted: one checked object, read from the settings file's ``fit`` section."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgl_entropy.train.machine.dtype import DTYPES
from sgl_entropy.train.schedules import ROUNDINGS, masked_percent, unrolled_steps
from sgl_entropy.train.settings.checks import out_of_range

_FROM_0 = (
    *("max_steps", "answer_length", "answer_tokens", "solved_rate", "head_rate"),
    *("weight_decay", "noise", "hold_gb", "checkpoint_seconds"),
)
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class FitSettings:
    """How a drafter is fitted.

    Attributes:
        epochs: passes over the store.
        steps: draft steps unrolled (training-time test), one entry an epoch; the last repeats.
        max_steps: EDTrain's Step-n instead: steps rise from 1 in the first epoch to this in the
            last. 0 = off, ``steps`` are taken.
        step_rounding: of Step-n between them: floor (the paper) or ceil (the authors' code).
        reached_only: go on with a chain only while its drafts are the target's own tokens, since at
            inference a chain ends at its first wrong draft. Every step but the first has fewer
            rows (ours, see ``reached_chains``).
        mask_gamma: EDTrain's Mask-p: epoch t (from 0) of T leaves out the (T - t - 1) *
            ``mask_gamma`` percent of each sample's rows where the target is least certain; the
            paper takes 3. 0 = off.
        answer_length: cut every answer after this many tokens, held-out ones too; 0 = keep them
            whole. A small target's long answers run into loops, which teach little (ours).
        answer_tokens: learn from about this many answer tokens, the first of the store; 0 = from
            all. What is held out stays the same.
        rows: chains in a batch; a chain starts at every row that is learned from.
        prompt_rows: also learn from prompts, starting where they begin to differ. The target did
            not write them, but it has judged their next tokens too. Gives several times the rows
            for the same generated tokens (ours).
        optimizer: adamw, or muon: the attention's and the MLP's matrices move along orthogonalised
            momentum, all other weights by AdamW (``optimizer``). Muon takes fifteen matmuls of each
            matrix a step: little on a GPU, as much as the batch itself on a CPU.
        learning_rate: the highest rate.
        warmup: the share of all optimizer steps in which the rate rises to its peak.
        final_rate: the rate falls along a cosine to this share of its peak.
        solved_rate: ``fc`` and EDFuse learn at this fraction of the rate: their least-squares
            start has small entries, which full-size steps would wipe out.
        head_rate: the draft head learns at this fraction of the rate: rows of rare tokens, which
            start as the target's own, drift most (ours).
        weight_decay: AdamW's weight decay, for all matrices except the head.
        noise: add uniform noise to the tapped features, within this many tap scales; the same
            noise whenever a step of a seed is run (EAGLE's augmentation; 0 = none).
        clip: largest gradient norm; infinite = no clipping.
        decay: the loss of draft step i (from 0) weighs decay^i; from 0 to 1.
        solved_start: start from least squares (``start_weights``) instead of random weights.
        start: the folder of a drafter to start from, for a second round on data that it has not
            seen. It keeps its draft vocabulary. Empty = none.
        validation_every: hold out one prompt in this many.
        dtype: of the matmuls, auto = the faster one here; the master weights are float32.
        online: compute features when they are needed, from the answers of ``prepare``, instead
            of reading a store: no storage, but one more target forward an epoch and sample.
        hold_gb: with ``online``, keep all features on the device once they are computed, if they
            fit into this many GB; 0 = compute them again in every epoch.
        skip_damaged: leave damaged shards out of ``fit`` and ``compare`` instead of refusing the
            store; other stages refuse them anyway.
        checkpoint_seconds: time between two checkpoints.
        seed: decides weights and batch order.
    """

    epochs: int = 4
    steps: tuple[int, ...] = (3,)
    max_steps: int = 0
    step_rounding: str = "floor"
    reached_only: bool = False
    mask_gamma: float = 0.0
    answer_length: int = 0
    answer_tokens: int = 0
    rows: int = 510
    prompt_rows: bool = False
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.04
    final_rate: float = 0.05
    solved_rate: float = 0.3
    head_rate: float = 1.0
    weight_decay: float = 0.0
    noise: float = 0.0
    clip: float = 1.0
    decay: float = 0.8
    solved_start: bool = True
    start: str = ""
    validation_every: int = 50
    dtype: str = "auto"
    online: bool = False
    hold_gb: float = 0.0
    skip_damaged: bool = False
    checkpoint_seconds: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            *out_of_range("fit", self, ("epochs", "rows", "validation_every"), 1),
            *out_of_range("fit", self, _FROM_0, 0),
            *out_of_range("fit", self, ("warmup", "final_rate", "decay"), 0, 1),
            *out_of_range("fit", self, ("seed",), 0, 2**63 - 1),
        ]
        if not self.steps or any(step < 1 for step in self.steps):
            wrong.append(f"fit.steps must list numbers from 1, found {list(self.steps)!r}")
        if self.answer_length == 1:
            wrong.append("fit.answer_length must be 0 or at least 2: one token judges no draft")
        if self.step_rounding not in ROUNDINGS:
            wrong.append(
                f"fit.step_rounding must be one of {ROUNDINGS}, found {self.step_rounding!r}"
            )
        if not 0 <= masked_percent(0, self.epochs, self.mask_gamma) < 100:
            wrong.append(
                f"fit.mask_gamma must leave something of the first of {self.epochs} epochs "
                f"(0 <= (epochs - 1) * mask_gamma < 100), found {self.mask_gamma!r}"
            )
        if not 0 < self.learning_rate < math.inf:
            wrong.append(
                f"fit.learning_rate must be above 0 and finite, found {self.learning_rate!r}"
            )
        if not self.clip > 0:  # infinite = off
            wrong.append(f"fit.clip must be above 0, found {self.clip!r}")
        if self.optimizer not in OPTIMIZERS:
            wrong.append(f"fit.optimizer must be one of {OPTIMIZERS}, found {self.optimizer!r}")
        if self.dtype not in DTYPES:
            wrong.append(f"fit.dtype must be one of {DTYPES}, found {self.dtype!r}")
        if wrong:
            raise ValueError("\n".join(wrong))

    def steps_in(self, epoch: int) -> int:
        """Draft steps of an epoch, counted from 0."""
        if self.max_steps:
            return unrolled_steps(epoch, self.epochs, self.max_steps, self.step_rounding)
        return self.steps[min(epoch, len(self.steps) - 1)]

    def rate(self, step: int, total: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0) of ``total``."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        along = (step - warm) / max(1, total - warm)
        low = self.final_rate
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * along)))
