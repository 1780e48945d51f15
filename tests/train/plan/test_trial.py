"""Seconds of a plan: real steps on the tiny target, and their scaling on a clock of our own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train.answers.slots import Slots
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.plan import trial as trials
from sgl_entropy.train.plan.lengths import Lengths, drawn
from sgl_entropy.train.plan.trial import Cost, Trial
from sgl_entropy.train.samples.batches import chain_count, plan_epoch
from sgl_entropy.train.samples.generate import WorkerPlan, run_worker
from sgl_entropy.train.samples.shards import Sample
from sgl_entropy.train.samples.store import Entry, Store, StoreMeta, write_meta
from sgl_entropy.train.settings.drafter import DrafterSettings
from sgl_entropy.train.settings.file import GenerateSettings, TrainSettings
from sgl_entropy.train.settings.fit import FitSettings
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import TAPS, tiny_config, tiny_prompts
from tests.train.fit.test_processes import work_folder
from tests.train.plan.test_counts import EDTRAIN, settings_of


def trial_on(folder: Path, fit: FitSettings, lengths: Lengths, slots: int = 5) -> Trial:
    generate = GenerateSettings(workers=1, slots=slots, max_new_tokens=20)
    layers = DrafterSettings(edsd_layers=(1, 2), eagle3_layers=TAPS)
    settings = TrainSettings(target=str(folder), generate=generate, drafter=layers, fit=fit)
    return Trial(Workspace.of(settings), tiny_config("EDSD", (1, 2)), lengths, "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [EDTRAIN, ["fit.online=true", "fit.hold_gb=1", "fit.optimizer=muon"]],
    ids=["store", "online"],
)
def test_the_command_measures_and_prints(
    tiny_store: Store,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    (work / "store").rename(work / "elsewhere")
    there = sorted(work.rglob("*"))
    words = ["train", "--plan", "--json", str(tmp_path / "plan.json")]
    for one in settings_of(work, tiny_folder, ["generate.answer_tokens=300", *more]):
        words += ["--set", one]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "EDSD on this machine" in printed
    online = "fit.online=true" in more
    assert ("none: features are computed online" in printed) == online
    plan = json.loads((tmp_path / "plan.json").read_text())
    for stage in ("generate", "fit"):
        assert 0 < plan[f"{stage}_seconds"] < 600
        assert 10**5 < plan[f"{stage}_memory_bytes"] < 10**9
    assert (plan["online_flops"] > 0) == online
    assert "assumed" in plan["lengths"]["origin"]
    assert sorted(work.rglob("*")) == there, "a plan leaves nothing behind"


@pytest.mark.parametrize("prompt_rows", [False, True])
def test_a_few_batches_stand_for_all(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, prompt_rows: bool
) -> None:
    """Mixed lengths, and draft steps that rise over the epochs, on a clock that padding moves."""
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
        assert self.samples.prompt_from == lengths.prompt_from(fit)
        assert {entry.shard.parent for entry in entries} == {self.samples.store.folder}
        clock += cost(entries, epoch, self.samples.prompt_from)
        learned.append(entries)

    monkeypatch.setattr(Fit, "learn", learn)
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: clock))
    first = lengths.prompt_from(fit)
    plans = [
        plan_epoch(lengths.learned(fit), fit.rows, fit.seed, epoch, first) for epoch in range(3)
    ]
    real = sum(cost(batch, epoch, first) for epoch, plan in enumerate(plans) for batch in plan)
    ready = trials._noise_fit(trial_on(tiny_folder, fit, lengths))
    assert trials._fit_seconds(ready) == pytest.approx(real, rel=0.1)
    assert len(learned) <= 21
    widest = max(trials.padded_rows(batch) for batch in plans[2])
    assert trials.padded_rows(learned[0]) == widest, "the peak of memory"


@pytest.mark.parametrize("slots", [4, 16])
def test_a_few_steps_stand_for_a_worker(
    tiny_store: Store,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
) -> None:
    """What a real worker takes, on a clock that prefilled rows and slots in use move."""
    clock = 0.0
    admit, step = Slots.admit, Slots.step

    def timed_admit(self: Slots[Sample], *given: object) -> None:
        nonlocal clock
        admit(self, *given)  # type: ignore[arg-type]
        clock += 0.1 * trials._padded(given[0])  # type: ignore[arg-type]

    def timed_step(self: Slots[Sample]) -> None:
        nonlocal clock
        clock += len(self.prompts)
        step(self)

    monkeypatch.setattr(Slots, "admit", timed_admit)
    monkeypatch.setattr(Slots, "step", timed_step)
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: clock))
    prompts = tuple(tiny_prompts(200))
    write_meta(tmp_path, StoreMeta(TAPS, 32))
    run_worker(
        WorkerPlan(0, str(tiny_folder), str(tmp_path), prompts, TAPS, 20, slots, 10**9, "float32")
    )
    real, store = clock, Store(tmp_path)
    new = tuple(
        drawn(e.prompt_id, e.prompt_length, e.length - e.prompt_length) for e in store.entries
    )
    tried = trial_on(tiny_folder, FitSettings(), Lengths(new), slots)
    ready = trials._ready_slots(trials._AnswerJob(tried, 0, 1, "cpu"))
    planned = store.answer_tokens() / trials._answer_rate(ready).tokens_per_s
    assert planned == pytest.approx(real, rel=0.2)


def test_nothing_to_answer_costs_nothing(tiny_store: Store, tiny_folder: Path) -> None:
    stored = Lengths(tuple(tiny_store.entries))
    assert trials.data_cost(trial_on(tiny_folder, FitSettings(), stored)) == Cost()
