"""The straightforward training loop, for comparison: same drafter, data and objective as ours.

It takes one answer at a time. Every row of prompt and answer goes through layer and head, and the
loss is masked. The target's distribution is a float32 softmax over its whole vocabulary, cut to the
draft vocabulary and renormalised. A draft step attends to the rows of all steps under one mask. All
is float32, autograd keeps everything, and the optimizer is plain AdamW. Two things are as in ours:
the gradients of a batch are summed before one optimizer step, and its loss is divided by the same
counts. So the two learn the same, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.target.plain import grouped_attention
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.loss.unrolled import StepFigures
from sgl_entropy.train.samples.batches import plan_epoch
from sgl_entropy.train.samples.shards import Sample
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.schedules import learned_rows, masked_percent


class Straightforward:
    """Trains the drafter of a ``Fit``, which is not used further.

    Args:
        run: gives drafter, settings, store and tap scale; answers alone are learned from.
        embedding, head: the target's, [vocab, d].
    """

    def __init__(self, run: Fit, embedding: Tensor, head: Tensor) -> None:
        if run.samples.prompt_from is not None:
            raise ValueError("the straightforward loop learns from answers: fit.prompt_rows is set")
        if run.settings.optimizer != "adamw":
            raise ValueError("the straightforward loop has AdamW alone: fit.optimizer is set")
        self.drafter: Drafter = run.drafter
        self.settings, self.store, self.config = run.settings, run.samples.store, run.config
        self.train, self.tap_scale = run.samples.train, run.side.tap_scale
        self.embedding, self.head = embedding.float(), head.float()
        draft = torch.arange(run.config.draft_vocab_size)
        self.vocabulary = self.drafter.target_ids(draft)
        self.optimizer = torch.optim.AdamW(
            [
                {key: group[key] for key in ("params", "factor")}
                for group in run.optimizer.all[0].param_groups
            ],
            lr=self.settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        )
        self.step = 0

    def plan(self, epoch: int) -> list[list[Entry]]:
        """The batches of an epoch: those of ``Fit``."""
        return plan_epoch(self.train, self.settings.rows, self.settings.seed, epoch)

    def learn(self, entries: Sequence[Entry], epoch: int, total: int) -> list[StepFigures]:
        """One optimizer step; see ``Fit.learn``."""
        steps = self.settings.steps_in(epoch)
        masked = masked_percent(epoch, self.settings.epochs, self.settings.mask_gamma)
        with record_function("train: data"):
            samples = [self._sample(entry) for entry in entries]
            labels = [self._labels(sample, masked, steps) for sample in samples]
        counts = sum(counted.sum(-1) for _, counted, _ in labels)
        assert isinstance(counts, Tensor)
        self.optimizer.zero_grad()
        losses, right = torch.zeros(steps), torch.zeros(steps, dtype=torch.long)
        rows, reached = torch.zeros_like(counts), torch.zeros_like(counts)
        for sample, (label, counted, real) in zip(samples, labels, strict=True):
            with record_function("train: forward"):
                loss, guessed, unrolled = self._answer_loss(sample, label, counted)
                weight = self.settings.decay ** torch.arange(steps) / counts.clamp_min(1)
            with record_function("train: backward"):
                (loss * weight).sum().backward()  # type: ignore[no-untyped-call]
            losses += loss.detach()
            right += guessed
            rows += (real & unrolled).sum(-1)
            reached += (counted & unrolled).sum(-1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step, total) * group["factor"]
        with record_function("train: optimizer"):
            torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.settings.clip)
            self.optimizer.step()
        self.step += 1
        return [
            StepFigures(*values)
            for values in zip(
                reached.tolist(), losses.tolist(), right.tolist(), rows.tolist(), strict=True
            )
        ]

    def _sample(self, entry: Entry) -> Sample:
        return self.store.sample(entry, self.config.target_layer_ids)

    def _labels(self, sample: Sample, masked: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each draft step and row of n: the draft id to guess, int64 [steps, n], whether it
        counts and whether it is a row of the answer, bool [steps, n]."""
        t2d, first = self.drafter.t2d, sample.prompt_length - 1
        n = len(sample.tokens) - 2
        draft_id = torch.where(t2d, torch.cumsum(t2d, 0) - 1, -1)[sample.best]
        learned = torch.zeros(n + 1, dtype=torch.bool)
        learned[first + 1 :] = learned_rows(sample.entropy[first + 1 :], masked)
        label, counted, real = [], [], []
        for step in range(steps):
            row = torch.arange(n)
            at = (row + 1 + step).clamp(max=n)
            real.append((row >= first) & (row + 1 + step <= n))
            label.append(draft_id[at])
            counted.append(real[-1] & learned[at] & (label[-1] >= 0))
        return torch.stack(label), torch.stack(counted), torch.stack(real)

    def _target(self, sample: Sample) -> Tensor:
        """The target's distribution over the draft vocabulary at each row."""
        logits = F.linear(sample.final.float(), self.head)
        probability = torch.softmax(logits, dim=-1)[:, self.vocabulary]
        return probability / probability.sum(-1, keepdim=True)

    def _answer_loss(
        self, sample: Sample, label: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each step's loss summed over counted rows, [steps], rows guessed right, and whether a
        row is unrolled, bool [steps, n]: all are, or with ``reached_only`` those that come after
        right guesses alone."""
        drafter, steps, n = self.drafter, len(label), len(sample.tokens) - 2
        with record_function("train: target"):
            target = F.pad(self._target(sample), (0, 0, 0, steps))
        following = F.pad(sample.tokens[1:], (0, steps))
        out = drafter.fuse_taps(sample.features[:n].float() / self.tap_scale)[None]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        # What step 0 may see, then each later step its own rows alone.
        masks = [torch.ones(n, n).tril().bool()]
        losses, right, unrolled = [], [], [torch.ones(n).bool()]
        for step in range(steps):
            positions = torch.arange(n)[None] + step
            embeds = F.embedding(following[step : step + n], self.embedding)[None]
            residual, mixed = drafter.mix(embeds, out)
            key, value = drafter.keys_values(mixed, positions)
            keys.append(key.transpose(1, 2))
            values.append(value.transpose(1, 2))
            attended = grouped_attention(
                drafter.queries(mixed, positions),
                torch.cat(keys, dim=2),
                torch.cat(values, dim=2),
                torch.cat(masks, dim=1)[None],
            )
            masks.append(torch.eye(n).bool())
            out = drafter.finish(residual, attended)
            with record_function("train: head"):
                loss, best = self._head_loss(out[0], target[step + 1 : step + 1 + n])
            here = counted[step] & unrolled[-1]
            guessed = here & (best == label[step])
            losses.append((loss * here).sum())
            right.append(guessed.sum())
            unrolled.append(guessed if self.settings.reached_only else unrolled[-1])
        return torch.stack(losses), torch.stack(right), torch.stack(unrolled[:steps])

    def _head_loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's soft cross-entropy and most likely draft id."""
        logits = self.drafter.logits(out)
        return -(target * torch.log_softmax(logits, dim=-1)).sum(-1), logits.argmax(-1)
