"""What a fit learns from: its samples, in batches, and this process's share of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.fit.start_weights import AnswerRows
from sgl_entropy.train.machine.processes import ProcessGroup
from sgl_entropy.train.samples.batches import (
    Batch,
    collate,
    first_tokens,
    plan_epoch,
    shortened,
    split_validation,
)
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.shards import Sample
from sgl_entropy.train.samples.store import Entry, Samples, shared_prefix
from sgl_entropy.train.settings.fit import FitSettings

# Answers by which the taps are scaled, and on which the starting weights are solved.
_SOLVED_ON = 1024


@dataclass(frozen=True)
class FitSamples:
    """The samples of one training.

    Attributes:
        layers: the tapped layers, as the drafter takes them.
        train, validation: what is learned from, and what is held out.
        prompt_from: the prompts' row that learning starts at; None = answers alone.
    """

    store: Samples
    settings: FitSettings
    layers: tuple[int, ...]
    train: list[Entry]
    validation: list[Entry]
    prompt_from: int | None

    @classmethod
    def of(cls, store: Samples, config: DrafterConfig, settings: FitSettings) -> FitSamples:
        """The part of ``store`` that ``settings`` name.

        Raises:
            ValueError: the store lacks layers that the drafter taps, or tokens that are asked for.
        """
        if config.target_layer_ids is None:
            raise ValueError("training needs the tapped layers by number")
        missing = set(config.target_layer_ids) - set(store.tap_layers)
        if missing:
            raise ValueError(
                f"{store.folder} holds layers {list(store.tap_layers)}, not {sorted(missing)}"
            )
        entries = shortened(store.entries, settings.answer_length)
        train, validation = split_validation(entries, settings.validation_every)
        train = first_tokens(train, settings.answer_tokens)
        prompt_from = shared_prefix(store) - 1 if settings.prompt_rows else None
        return cls(store, settings, config.target_layer_ids, train, validation, prompt_from)

    def plan(self, epoch: int) -> list[list[Entry]]:
        """The batches of an epoch."""
        given = self.settings
        return plan_epoch(self.train, given.rows, given.seed, epoch, self.prompt_from)

    def validation_plan(self) -> list[list[Entry]]:
        """The batches that are held out."""
        return plan_epoch(self.validation, self.settings.rows, 0, 0)

    def batch(
        self,
        entries: Sequence[Entry],
        steps: int,
        group: ProcessGroup,
        *,
        masked: float = 0.0,
        prompts: bool = True,
    ) -> Batch | None:
        """This process's share of a batch, on its device; None where nothing is left for it.

        Args:
            masked: percent of each sample's rows that are not learned from (Mask-p).
            prompts: whether chains start in prompts too, where the settings say so.
        """
        own = group.share(entries)
        if not own:
            return None
        prompt_from = self.prompt_from if prompts else None
        if isinstance(self.store, OnlineStore):
            batch = self.store.batch(own, self.layers, steps, masked, prompt_from)
        else:
            batch = collate([self._sample(e) for e in own], steps, masked, prompt_from)
        return batch.to(group.device)

    def answers_to_solve_on(self) -> list[AnswerRows]:
        """Rows of answers to learn from, spread over all.

        Raises:
            ValueError: a value that is not finite; names the sample.
        """
        count = min(_SOLVED_ON, len(self.train))
        spread = [self.train[i * len(self.train) // count] for i in range(count)]
        return [AnswerRows.of(self._sample(entry), name_of(entry)) for entry in spread]

    def keep_on_device(self) -> bool:
        """Compute all features once and keep them on the device, if ``fit.hold_gb`` allows it."""
        if not self.settings.hold_gb or not isinstance(self.store, OnlineStore):
            return False
        mine = [*self.train, *self.validation]
        return self.store.keep(mine, self.layers, self.prompt_from, self.settings.hold_gb)

    def _sample(self, entry: Entry) -> Sample:
        return self.store.sample(entry, self.layers)


def name_of(entry: Entry) -> str:
    """A sample, for people."""
    return f"{entry.shard.name} prompt {entry.prompt_id}"
