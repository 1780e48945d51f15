"""The training loop: one drafter, one or several processes, resumable at any moment.

Everything a step needs is a function of (settings, store, step number), and a checkpoint holds
weights, optimizer state and step number: a run that was killed and resumed ends with the weights
of an unbroken one, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.drafter.model import Drafter, build_drafter, load_drafter
from sgl_entropy.train.fit.checkpoints import Checkpoints
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.fit.optimizer import Optimizers
from sgl_entropy.train.fit.progress import Costs, add_up
from sgl_entropy.train.fit.run_identity import accepted_changes, identity_of
from sgl_entropy.train.fit.start_weights import AnswerRows, initialise, start_from, tap_scales
from sgl_entropy.train.loss.unrolled import (
    SharedLoss,
    StepFigures,
    TargetSide,
    step_rows,
    unrolled_loss,
)
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import Group
from sgl_entropy.train.samples.batches import (
    Batch,
    collate,
    first_tokens,
    plan_epoch,
    shortened,
    split_validation,
)
from sgl_entropy.train.samples.feature_noise import feature_noise
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.store import Entry, Samples, shared_prefix
from sgl_entropy.train.schedules import masked_percent
from sgl_entropy.train.settings.fit import FitSettings

# Answers by which the taps are scaled, and on which the starting weights are solved.
_SOLVED_ON = 1024


class Fit:
    """One drafter's training over one store.

    Args:
        config: the drafter to train; ``target_layer_ids`` must be among the store's taps.
        vocabulary: int64 [draft vocab], its target ids, rising.
        embedding, head: the target's, [vocab, d].
        folder: checkpoint and log; an earlier checkpoint there is resumed.
        group: the processes that share the work; see ``group.join_group``.
        accept_changes: go on from a checkpoint although its rate, or another of the settings in
            ``identity.CHANGEABLE``, was another.

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
        group: Group | None = None,
        *,
        accept_changes: bool = False,
    ) -> None:
        if config.target_layer_ids is None:
            raise ValueError("training needs the tapped layers by number")
        missing = set(config.target_layer_ids) - set(store.tap_layers)
        if missing:
            raise ValueError(
                f"{store.folder} holds layers {list(store.tap_layers)}, not {sorted(missing)}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(folder)
        held = self.checkpoints.load()
        made_with = held["identity"]["settings"]["dtype"] if held else None
        self.group = group = group or Group()
        # Measured where it is not given; machines may differ.
        dtype = resolve_dtype(settings.dtype, made_with, group.device.type)
        settings = replace(settings, dtype=group.agree(dtype))
        self.config, self.settings, self.store, self.folder = config, settings, store, folder
        self.working = getattr(torch, settings.dtype)
        entries = shortened(store.entries, settings.answer_length)
        self.train, self.validation = split_validation(entries, settings.validation_every)
        self.train = first_tokens(self.train, settings.answer_tokens)
        self.prompt_from = shared_prefix(store) - 1 if settings.prompt_rows else None
        self.drafter = build_drafter(config)
        self.drafter.t2d[vocabulary] = True
        self.drafter.d2t.copy_(vocabulary - torch.arange(len(vocabulary)))
        self.step = 0
        self._saved: int | None = None  # the step of the newest checkpoint, where it is whole
        # Of all runs together, as a resumed one continues: rows by epoch, and seconds.
        self.costs: Costs = {}
        self.seconds = 0.0
        self._identity = identity_of(config, settings, self.train, vocabulary)
        # Settings that were changed on the way, by step; and now.
        self.changes: list[dict[str, Any]] = []
        self.changed: dict[str, Any] = {}
        if held is None:
            spread = self._spread(_SOLVED_ON)
            known = [AnswerRows.of(self._sample(e), _name(e)) for e in spread]
            scale = tap_scales(known)
        else:
            self.changes = held.get("changes", [])
            changed = accepted_changes(
                held["identity"], self._identity, self.checkpoints.path, accept_changes
            )
            if changed:
                self.changed = {"step": held["step"], "changed": changed}
                self.changes = [*self.changes, self.changed]
            scale = held["tap_scale"]
        self.side = TargetSide(
            embedding.to(self.working), head[vocabulary].to(self.working), scale
        ).to(group.device)
        if held is not None:
            self.drafter.load_state_dict(held["drafter"])
        elif settings.start:
            start_from(self.drafter, load_drafter(Path(settings.start).expanduser()), scale)
        else:
            initialise(self.drafter, self.side, known, settings.seed, solved=settings.solved_start)
        self.drafter.to(group.device)
        self.optimizer = Optimizers(self.drafter, settings)
        if held is not None:
            self.optimizer.load_state_dict(held["optimizer"])
            self.step = held["step"]
            if not self.changed and not self.checkpoints.note:
                self._saved = self.step
            self.costs, self.seconds = held["costs"], held["seconds"]
        self._losses = self._shared_losses()
        self.held = isinstance(store, OnlineStore) and self._hold(store)

    def run(self, report: Callable[[str], None] = print, stop_after: int | None = None) -> Drafter:
        """Train to the end (or ``stop_after`` optimizer steps in all) and return the drafter.

        A signal to end, to any process of the group, is followed after the step at hand.

        Args:
            report: takes lines of progress, in the leading process alone.

        Raises:
            KeyboardInterrupt: ended by a signal; a checkpoint holds all steps.
        """
        run_fit(self, report, stop_after)
        return self.drafter

    def plan(self, epoch: int) -> list[list[Entry]]:
        """The batches of an epoch."""
        return plan_epoch(
            self.train, self.settings.rows, self.settings.seed, epoch, self.prompt_from
        )

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
            batch = self._noisy(self._batch(entries, steps, masked, self.prompt_from), entries)
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
        figures = add_up(own, self.group)
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

    def _batch(
        self, entries: Sequence[Entry], steps: int, masked: float, prompt_from: int | None
    ) -> Batch | None:
        """This process's share of a batch; None where nothing is left for it."""
        own = self.group.share(entries)
        if not own:
            return None
        if isinstance(self.store, OnlineStore):
            layers = self.config.target_layer_ids or ()
            batch = self.store.batch(own, layers, steps, masked, prompt_from)
        else:
            batch = collate([self._sample(e) for e in own], steps, masked, prompt_from)
        return batch.to(self.group.device)

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
        where = ", ".join(map(_name, entries))
        return (
            f"step {self.step + 1}: the loss is {loss} and its gradient's norm {norm}; the batch: "
            f"{where}. Nothing of it was learned; {self.checkpoints.path} holds the step before. "
            f"Look at these samples, or go on from there with a lower rate: the same command with "
            f"--set fit.learning_rate={self.settings.learning_rate / 2:g} --accept-changes"
        )

    @torch.no_grad()
    def validate(self, entries: Sequence[Entry]) -> list[StepFigures]:
        """The figures of a batch that is held out."""
        batch = self._batch(entries, 3, 0.0, None)
        own = torch.zeros((3, 4), dtype=torch.float64)
        if batch is not None:
            with self._autocast():
                own = unrolled_loss(self.drafter, self.side, batch, 3)[1]
        return add_up(own, self.group)

    def _hold(self, store: OnlineStore) -> bool:
        """Whether the features of all samples are kept on the device from now on."""
        if not self.settings.hold_gb:
            return False
        layers = self.config.target_layer_ids or ()
        mine = [*self.train, *self.validation]
        return store.hold(mine, layers, self.prompt_from, self.settings.hold_gb)

    def _spread(self, count: int) -> list[Entry]:
        """At most so many of the answers to learn from, spread over all."""
        count = min(count, len(self.train))
        return [self.train[i * len(self.train) // count] for i in range(count)]

    def _sample(self, entry: Entry) -> Any:
        return self.store.sample(entry, self.config.target_layer_ids)

    def save(self) -> None:
        """Make the next checkpoint, in the leading process, if there is anything new to keep."""
        if not self.group.leads or self._saved == self.step:
            return
        self.checkpoints.save(
            {
                "identity": self._identity,
                "step": self.step,
                "costs": self.costs,
                "seconds": self.seconds,
                "changes": self.changes,
                "drafter": self.drafter.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "tap_scale": self.side.tap_scale,
            }
        )
        self._saved = self.step


def _name(entry: Entry) -> str:
    """A sample, for people."""
    return f"{entry.shard.name} prompt {entry.prompt_id}"
