"""The planned schedule of a worker against what a real one does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sgl_entropy.train.plan import slots as plan_slots
from sgl_entropy.train.plan.lengths import drawn
from sgl_entropy.train.plan.slots import worker_schedule
from sgl_entropy.train.prompts.order import Prompt, worker_queue
from sgl_entropy.train.samples.generate import Batch, WorkerPlan, run_worker
from sgl_entropy.train.samples.store import FORMAT, Store, write_meta
from tests.train.conftest import TAPS, tiny_prompts


def test_prefills_and_steps_are_those_of_a_real_worker(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefills: list[list[int]] = []
    steps: list[tuple[int, int]] = []
    admit, step = Batch.admit, Batch.step

    def seen_admit(self: Batch, prompts: Sequence[Prompt], slots: Sequence[int]) -> None:
        prefills.append([prompt.prompt_id for prompt in prompts])
        admit(self, prompts, slots)

    def seen_step(self: Batch) -> None:
        steps.append((int(self.lengths.max()), len(self.prompts)))
        step(self)

    monkeypatch.setattr(Batch, "admit", seen_admit)
    monkeypatch.setattr(Batch, "step", seen_step)
    kept = {entry.prompt_id for entry in tiny_store.entries}
    prompts = [prompt for prompt in tiny_prompts() if prompt.prompt_id in kept]
    write_meta(tmp_path, {"format": FORMAT, "tap_layers": list(TAPS), "hidden_size": 32})
    run_worker(
        WorkerPlan(
            number=0,
            target=str(tiny_folder),
            store=str(tmp_path),
            prompts=tuple(worker_queue(prompts, 0, 1)),
            tap_layers=TAPS,
            max_new_tokens=20,
            slots=8,
            answer_tokens=10**9,
            dtype="float32",
        )
    )
    schedule = worker_schedule(tiny_store.entries, 0, 1, 8)
    planned = [[prompt.prompt_id for prompt in part] for part in schedule.prefills]
    assert len(prefills) > 2
    assert planned == prefills
    assert list(zip(schedule.steps, schedule.held, strict=True)) == steps
    assert len({held for _, held in steps}) > 1, "idle slots are dropped in the end"
    assert schedule.answer_tokens == tiny_store.answer_tokens()


@pytest.mark.parametrize("followed", [50, 10**6])
def test_of_many_the_first_are_followed(monkeypatch: pytest.MonkeyPatch, followed: int) -> None:
    """Then slots are full to the end: what is under way when enough is finished is lost work, as
    long as the last answers."""
    monkeypatch.setattr(plan_slots, "_FOLLOWED", followed)
    entries = [drawn(i, 10, 50) for i in range(110)]
    schedule = worker_schedule(entries, 0, 2, 20)
    assert schedule.slots == 20
    if followed == 50:
        assert schedule.answer_tokens == 60 * 50, "three rounds of 20 for 50 answers"
        assert schedule.held == [20] * len(schedule.steps)
    else:
        assert schedule.answer_tokens == 55 * 50
        assert schedule.held == [20] * 98 + [15] * 49
    assert len(schedule.steps) == 3 * 49
    assert (min(schedule.steps), max(schedule.steps)) == (11, 59)
    assert worker_schedule(entries[:6], 1, 2, 20).slots == 3, "no more than there are prompts"
