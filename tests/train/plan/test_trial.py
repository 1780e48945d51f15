"""Seconds of a fit from a few of its batches: against a clock that costs what padding costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.plan import trial as plan_trial
from sgl_entropy.train.plan.lengths import Lengths, drawn
from sgl_entropy.train.plan.trial import Trial
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.settings.fit import FitSettings
from tests.train.conftest import tiny_config


@pytest.mark.parametrize("prompt_rows", [False, True])
def test_a_few_batches_stand_for_all(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, prompt_rows: bool
) -> None:
    """Mixed lengths, and draft steps that rise over the epochs."""
    chance = random.Random(2)
    sizes = [(chance.choice((6, 9, 12, 40, 70)), chance.randint(2, 30)) for _ in range(400)]
    lengths = Lengths(tuple(drawn(i, *size) for i, size in enumerate(sizes)), shared=3)
    fit = FitSettings(
        epochs=3, max_steps=3, rows=60, prompt_rows=prompt_rows, dtype="float32", solved_start=False
    )
    clock = 0.0
    learned: list[Sequence[Entry]] = []

    def cost(batch: Sequence[Entry], epoch: int, first: int | None) -> float:
        chains = max(chain_count(entry, first) for entry in batch)
        rows = max(entry.length for entry in batch) + fit.steps_in(epoch) * chains
        return 0.01 * len(batch) * rows

    def learn(self: Fit, entries: Sequence[Entry], epoch: int, total: int) -> None:
        nonlocal clock
        assert self.prompt_from == lengths.prompt_from(fit)
        assert {entry.shard.parent for entry in entries} == {self.store.folder}
        clock += cost(entries, epoch, self.prompt_from)
        learned.append(entries)

    monkeypatch.setattr(Fit, "learn", learn)
    monkeypatch.setattr(plan_trial, "time", SimpleNamespace(perf_counter=lambda: clock))
    trial = Trial(str(tiny_folder), (1, 2), tiny_config("EDSD", (1, 2)), fit, lengths, 5, 1, "")
    first = lengths.prompt_from(fit)
    real = sum(
        cost(batch, epoch, first)
        for epoch in range(fit.epochs)
        for batch in plan_epoch(lengths.learned(fit), fit.rows, fit.seed, epoch, first)
    )
    assert plan_trial._fit_seconds(trial) == pytest.approx(real, rel=0.1)
    assert len(learned) <= 25
