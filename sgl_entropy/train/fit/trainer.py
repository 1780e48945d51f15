"""The training of one drafter: its state, one optimizer step, one validation, one checkpoint.

Everything a step needs is a function of (settings, store, step number), and a checkpoint holds
weights, optimizer state and step number: a run that was killed and resumed ends with the weights
of an unbroken one, on any number of processes. ``loop.run_fit`` goes through the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import record_function

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.drafter.model import build_drafter, load_drafter
from sgl_entropy.train.fit.checkpoints import Checkpoints, FitState
from sgl_entropy.train.fit.costs import Costs
from sgl_entropy.train.fit.optimizer import Optimizers
from sgl_entropy.train.fit.run_identity import Change, RunIdentity, accepted_changes
from sgl_entropy.train.fit.samples import FitSamples, name_of
from sgl_entropy.train.fit.start_weights import AnswerRows, initialise, start_from, tap_scales
from sgl_entropy.train.loss.unrolled import (
    SharedLoss,
    StepFigures,
    TargetSide,
    step_rows,
    unrolled_loss,
)
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import ProcessGroup
from sgl_entropy.train.samples.batches import Batch
from sgl_entropy.train.samples.feature_noise import feature_noise
from sgl_entropy.train.samples.store import Entry, Samples
from sgl_entropy.train.schedules import masked_percent
from sgl_entropy.train.settings.fit import FitSettings

# Draft steps that a validation unrolls.
_VALIDATED_STEPS = 3


class Fit:
    """One drafter's training over one store.

    Args:
        config: the drafter to train; ``target_layer_ids`` must be among the store's taps.
        vocabulary: int64 [draft vocab], its target ids, rising.
        embedding, head: the target's, [vocab, d].
        folder: checkpoint and log; an earlier checkpoint there is resumed.
        group: the processes that share the work; see ``processes.join_group``.
        accept_changes: go on from a checkpoint although its rate, or another of the settings in
            ``run_identity.CHANGEABLE``, was another.

    Attributes:
        step: optimizer steps so far.
        costs, seconds: of all runs together: a resumed one continues.
        changes, changed: settings that were changed on the way, and by this run (None = none).
        keeps_features: whether the features of all samples stay on the device.

    Raises:
        ValueError: the folder's checkpoints are of other settings or damaged, the taps are not
            stored, or an answer that the start is solved on is not finite.
    """

    def __init__(
        self,
        config: DrafterConfig,
        settings: FitSettings,
        store: Samples,
        vocabulary: Tensor,
        embedding: Tensor,
        head: Tensor,
        folder: Path,
        group: ProcessGroup | None = None,
        *,
        accept_changes: bool = False,
    ) -> None:
        self.samples = FitSamples.of(store, config, settings)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder)
        state = self.checkpoints.load()
        self.group = group or ProcessGroup()
        # Measured where it is not given; machines may differ.
        dtype = resolve_dtype(
            settings.dtype, state.identity.dtype if state else None, self.group.device.type
        )
        settings = replace(settings, dtype=self.group.agree(dtype))
        self.config, self.settings, self.folder = config, settings, folder
        self.working = getattr(torch, settings.dtype)
        self.identity = RunIdentity.of(config, settings, self.samples.train, vocabulary)
        self.changes, self.changed = self._changes_since(state, accept_changes)

        answers = self.samples.answers_to_solve_on() if state is None else []
        scale = tap_scales(answers) if state is None else state.tap_scale
        self.side = TargetSide(
            embedding.to(self.working), head[vocabulary].to(self.working), scale
        ).to(self.group.device)
        self.drafter = build_drafter(config)
        self.drafter.t2d[vocabulary] = True
        self.drafter.d2t.copy_(vocabulary - torch.arange(len(vocabulary)))
        self._set_weights(state, answers)
        self.drafter.to(self.group.device)
        self.optimizer = Optimizers(self.drafter, settings)
        self.step, self.costs, self.seconds = 0, Costs(), 0.0
        self._saved: int | None = None  # the step of the newest checkpoint, where it is whole
        if state is not None:
            self.optimizer.load_state_dict(state.optimizer)
            self.step, self.costs, self.seconds = state.step, state.costs, state.seconds
            if not self.changed and not self.checkpoints.note:
                self._saved = self.step
        self._losses = self._shared_losses()
        self.keeps_features = self.samples.keep_on_device()

    def _changes_since(
        self, state: FitState | None, accept: bool
    ) -> tuple[list[Change], Change | None]:
        """All changes of settings so far, and this run's."""
        if state is None:
            return [], None
        changed = accepted_changes(state.identity, self.identity, self.checkpoints.path, accept)
        if not changed:
            return state.changes, None
        change = Change(state.step, changed)
        return [*state.changes, change], change

    def _set_weights(self, state: FitState | None, answers: Sequence[AnswerRows]) -> None:
        """The weights that this run begins with: a checkpoint's, an earlier drafter's, or new."""
        if state is not None:
            self.drafter.load_state_dict(state.drafter)
        elif self.settings.start:
            earlier = load_drafter(Path(self.settings.start).expanduser())
            start_from(self.drafter, earlier, self.side.tap_scale.cpu())
        else:
            given = self.settings
            initialise(self.drafter, self.side, answers, given.seed, solved=given.solved_start)

    def plan(self, epoch: int) -> list[list[Entry]]:
        """The batches of an epoch."""
        return self.samples.plan(epoch)

    def learn(self, entries: Sequence[Entry], epoch: int, total: int) -> list[StepFigures]:
        """One optimizer step on a batch, of which this process takes its share.

        Returns:
            The figures of the whole batch.
        """
        steps = self.settings.steps_in(epoch)
        masked = masked_percent(epoch, self.settings.epochs, self.settings.mask_gamma)
        self.optimizer.set_rate(self.settings.rate(self.step, total))
        # Ranges for torch's profiler; ``figures/train_throughput`` reads them.
        with record_function("train: data"):
            batch = self._batch(entries, steps, masked)
            judged = None if batch is None else step_rows(batch, self.drafter.t2d, steps)
        counts = torch.tensor([r.counted for r in judged] if judged else [0] * steps)
        counted: list[int] = self.group.sum(counts).tolist()
        with record_function("train: forward"), self._autocast():
            shared = counted if self.group.size > 1 else None
            loss, own = self._losses(batch, steps, shared, judged)
        if any(counted):  # a batch may hold no row to learn from
            self.optimizer.zero_grad()
            with record_function("train: backward"):
                loss.backward()
            with record_function("train: optimizer"):
                weights = self.drafter.parameters()
                norm = torch.nn.utils.clip_grad_norm_(weights, self.settings.clip)
        # Read when all of the step is queued: a GPU works while the CPU is not waiting for it.
        figures = self._whole(own)
        if any(counted):
            whole = sum(f.loss for f in figures)
            # Before the weights are touched: a checkpoint never holds what such a step leaves.
            # Both numbers are the whole batch's, so that all processes stop here together.
            if not math.isfinite(whole) or not math.isfinite(float(norm)):
                self.save()
                raise RuntimeError(self._broken(entries, whole, float(norm)))
            with record_function("train: optimizer"):
                self.optimizer.step()
        self.step += 1
        return figures

    def _shared_losses(self) -> torch.nn.Module:
        given = self.settings
        losses = SharedLoss(
            self.drafter, self.side, given.decay, self.group.size, given.reached_only
        )
        if self.group.size == 1:
            return losses
        return torch.nn.parallel.DistributedDataParallel(losses, broadcast_buffers=False)

    def _batch(self, entries: Sequence[Entry], steps: int, masked: float) -> Batch | None:
        """This process's share of a batch to learn from, with noise on its features."""
        batch = self.samples.batch(entries, steps, self.group, masked=masked)
        return self._noisy(batch, entries)

    def _noisy(self, batch: Batch | None, entries: Sequence[Entry]) -> Batch | None:
        """This process's share of the batch of ``entries``, with noise on its features."""
        if batch is None or not self.settings.noise:
            return batch
        rows = [entry.length - 2 for entry in self.group.share(entries)]
        places = self.group.share(range(len(entries)))
        noise = feature_noise(rows, places, batch.features, self.settings.seed, self.step)
        noise *= self.settings.noise * self.side.tap_scale
        return replace(batch, features=batch.features + noise.to(batch.features.dtype))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.group.device.type, torch.bfloat16, enabled=self.working == torch.bfloat16
        )

    def _broken(self, entries: Sequence[Entry], loss: float, norm: float) -> str:
        where = ", ".join(map(name_of, entries))
        return (
            f"step {self.step + 1}: the loss is {loss} and its gradient's norm {norm}; the batch: "
            f"{where}. Nothing of it was learned; {self.checkpoints.path} holds the step before. "
            f"Look at these samples, or go on from there with a lower rate: the same command with "
            f"--set fit.learning_rate={self.settings.learning_rate / 2:g} --accept-changes"
        )

    @torch.no_grad()
    def validate(self, entries: Sequence[Entry]) -> list[StepFigures]:
        """The figures of a batch that is held out."""
        steps = _VALIDATED_STEPS
        batch = self.samples.batch(entries, steps, self.group, prompts=False)
        own = torch.zeros((steps, 4), dtype=torch.float64)
        if batch is not None:
            with self._autocast():
                own = unrolled_loss(self.drafter, self.side, batch, steps)[1]
        return self._whole(own)

    def _whole(self, figures: Tensor) -> list[StepFigures]:
        """The figures of all processes together; ``figures`` [steps, 4] as a loss has them."""
        return [
            StepFigures(int(counted), loss, int(right), int(rows))
            for counted, loss, right, rows in self.group.sum(figures).tolist()
        ]

    def save(self) -> None:
        """Make the next checkpoint, in the leading process, if there is anything new to keep."""
        if not self.group.leads or self._saved == self.step:
            return
        self.checkpoints.save(
            FitState(
                identity=self.identity,
                step=self.step,
                costs=self.costs,
                seconds=self.seconds,
                changes=self.changes,
                drafter=self.drafter.state_dict(),
                optimizer=self.optimizer.state_dict(),
                tap_scale=self.side.tap_scale,
            )
        )
        self._saved = self.step
