"""The training loop on a tiny target: it learns, resumes exactly, exports what it trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.evaluate.walk import draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.export import export_drafter, fold_tap_scale
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.fit.run_identity import Change
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.loss.unrolled import unrolled_loss
from sgl_entropy.train.machine.processes import ProcessGroup
from sgl_entropy.train.prompts.draft_vocabulary import count_tokens, draft_vocabulary
from sgl_entropy.train.samples.batches import collate, plan_epoch
from sgl_entropy.train.samples.shards import Sample, write_shard
from sgl_entropy.train.samples.store import Entry, Store, StoreMeta, shared_prefix, write_meta
from sgl_entropy.train.schedules import learned_rows
from sgl_entropy.train.settings.fit import FitSettings
from tests.train.conftest import TAPS, VOCAB, tiny_config, tiny_prompts
from tests.train.fit.test_checkpoints import files_no_larger_than

SETTINGS = FitSettings(
    epochs=3, steps=(1, 2), rows=40, learning_rate=3e-3, validation_every=12, dtype="float32"
)
GPU = torch.device("cuda", 0)
ARMS = [("EDSD", (1, 2)), ("EAGLE3", TAPS)]


def start(
    store: Store,
    target: PlainTarget,
    folder: Path,
    arm: tuple[str, tuple[int, ...]],
    settings: FitSettings = SETTINGS,
    group: ProcessGroup | None = None,
    accept: bool = False,
) -> Fit:
    answers = count_tokens((store.tokens(e)[e.prompt_length :] for e in store.entries), VOCAB)
    chosen = draft_vocabulary(answers, torch.zeros(VOCAB), 96, 0.0, [2])
    config = tiny_config(*arm)
    given = (store, chosen, target.embedding, target.head, folder, group)
    return Fit(config, settings, *given, accept_changes=accept)


def training_loss(fit: Fit) -> float:
    samples = [fit.samples.store.sample(e, fit.config.target_layer_ids) for e in fit.samples.train]
    with torch.no_grad():
        return float(unrolled_loss(fit.drafter, fit.side, collate(samples, 2), 2)[0])


@pytest.mark.parametrize("arm", ARMS, ids=["edsd", "eagle3"])
def test_it_learns(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, arm: tuple[str, tuple[int, ...]]
) -> None:
    """Random start, so that all of the fall is the loop's. The target is random too: what can be
    learned is these very answers."""
    settings = replace(
        SETTINGS, epochs=12, steps=(2,), solved_start=False, solved_rate=1.0, learning_rate=6e-3
    )
    fit = start(tiny_store, tiny_target, tmp_path, arm, settings)
    before = training_loss(fit)
    run_fit(fit, lambda line: None)
    # Cross-entropy never falls below the entropy of the target.
    assert training_loss(fit) < 0.85 * before
    rows = [json.loads(line) for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "validation" in row] == list(range(1, 13))


@pytest.mark.parametrize("arm", ARMS, ids=["edsd", "eagle3"])
def test_resumed_equals_unbroken(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, arm: tuple[str, tuple[int, ...]]
) -> None:
    unbroken = run_fit(start(tiny_store, tiny_target, tmp_path / "a", arm), lambda line: None)
    for stop in (2, 5, None):
        part = start(tiny_store, tiny_target, tmp_path / "b", arm)
        resumed = run_fit(part, lambda line: None, stop_after=stop)
    for (name, one), (_, two) in zip(
        unbroken.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name


@pytest.mark.gpu
@pytest.mark.parametrize("reached_only", [False, True], ids=["all", "reached"])
@pytest.mark.parametrize("arm", ARMS, ids=["edsd", "eagle3"])
def test_a_gpu_learns_what_the_cpu_learns(
    tiny_store: Store,
    tiny_target: PlainTarget,
    tmp_path: Path,
    arm: tuple[str, tuple[int, ...]],
    reached_only: bool,
) -> None:
    """On a machine with CUDA: pytest -m gpu tests/train/test_fit.py"""
    given = replace(SETTINGS, reached_only=reached_only)
    here = start(tiny_store, tiny_target, tmp_path / "a", arm, given)
    run_fit(here, lambda line: None)
    there = start(
        tiny_store, tiny_target, tmp_path / "b", arm, given, group=ProcessGroup(device=GPU)
    )
    run_fit(there, lambda line: None)
    for name, weight in here.drafter.state_dict().items():
        other = there.drafter.state_dict()[name].cpu()
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_checkpoint_of_other_settings_is_refused(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    run_fit(start(tiny_store, tiny_target, tmp_path, ARMS[0]), lambda line: None, stop_after=1)
    other = replace(SETTINGS, rows=41, learning_rate=1e-4)
    for accept in (False, True):
        with pytest.raises(ValueError, match="another run") as error:
            start(tiny_store, tiny_target, tmp_path, ARMS[0], other, accept=accept)
        assert "fit.rows: was 40, is 41" in str(error.value)
        assert "fit.learning_rate: was 0.003, is 0.0001" in str(error.value)
        assert "--accept-changes" not in str(error.value), "it would not help"


def test_a_lower_rate_from_here_on_is_taken_when_asked_for(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """As the advice on a loss that is not finite says; the log and later checkpoints tell of it."""
    lower = replace(SETTINGS, learning_rate=1e-4, clip=0.5)
    begun = start(tiny_store, tiny_target, tmp_path, ARMS[0])
    run_fit(begun, lambda line: None, stop_after=2)
    at = begun.drafter.fc.weight.clone()
    with pytest.raises(ValueError, match=r"fit\.clip: was 1\.0, is 0\.5(.|\n)*--accept-changes"):
        start(tiny_store, tiny_target, tmp_path, ARMS[0], lower)
    told: list[str] = []
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0], lower, accept=True)
    run_fit(fit, told.append, stop_after=3)
    assert told == ["from step 2 on: fit.clip 1.0 -> 0.5, fit.learning_rate 0.003 -> 0.0001"]
    # AdamW moves an entry by about the rate at most.
    assert 0 < float((fit.drafter.fc.weight - at).abs().max().detach()) < 5e-4
    change = {
        "step": 2,
        "changed": {"fit.clip": [1.0, 0.5], "fit.learning_rate": [0.003, 1e-4]},
    }
    logged = json.loads((tmp_path / "fit.jsonl").read_text())
    assert {key: logged[key] for key in change} == change
    # From here on that is how it is, and what was before is the change.
    again = start(tiny_store, tiny_target, tmp_path, ARMS[0], lower)
    assert again.changes == [Change(**change)]
    with pytest.raises(ValueError, match=r"was 0\.0001, is 0\.003"):
        start(tiny_store, tiny_target, tmp_path, ARMS[0])


def test_a_checkpoint_from_before_a_setting_is_the_default_of_it(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """And its optimizer's state was not yet a list of several."""
    unbroken = start(tiny_store, tiny_target, tmp_path / "a", ARMS[0])
    run_fit(unbroken, lambda line: None, stop_after=5)
    run_fit(
        start(tiny_store, tiny_target, tmp_path / "b", ARMS[0]), lambda line: None, stop_after=2
    )
    path = tmp_path / "b" / "checkpoint.pt"
    held = torch.load(path)
    del held["identity"]["settings"]["optimizer"], held["changes"]
    (held["optimizer"],) = held["optimizer"]
    torch.save(held, path)
    muon = replace(SETTINGS, optimizer="muon")
    with pytest.raises(ValueError, match=r"fit\.optimizer: was 'adamw', is 'muon'"):
        start(tiny_store, tiny_target, tmp_path / "b", ARMS[0], muon)
    fit = start(tiny_store, tiny_target, tmp_path / "b", ARMS[0])
    run_fit(fit, lambda line: None, stop_after=5)
    assert torch.equal(fit.drafter.fc.weight, unbroken.drafter.fc.weight)


def test_an_answer_that_is_not_finite_is_named_before_the_start_is_solved(
    tiny_store: Store,
    tiny_target: PlainTarget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single NaN there would make every weight one."""
    prompt = tiny_store.entries[3].prompt_id
    whole = Store.sample

    def poisoned(store: Store, entry: Entry, *columns: Any) -> Sample:
        sample = whole(store, entry, *columns)
        final = sample.final.clone()  # a view of the store's own
        final[-1, 0] = torch.inf
        return replace(sample, final=final) if entry.prompt_id == prompt else sample

    monkeypatch.setattr(Store, "sample", poisoned)
    with pytest.raises(ValueError, match=rf"safetensors.* prompt {prompt}\b.* not finite"):
        start(tiny_store, tiny_target, tmp_path, ARMS[0])


@pytest.mark.parametrize("arm", ARMS, ids=["edsd", "eagle3"])
def test_export_reloads_and_drafts_the_same(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, arm: tuple[str, tuple[int, ...]]
) -> None:
    settings = replace(SETTINGS, epochs=10, learning_rate=6e-3, solved_rate=1.0)
    trained = start(tiny_store, tiny_target, tmp_path / "fit", arm, settings)
    drafter = run_fit(trained, lambda line: None)
    scale = trained.side.tap_scale
    assert float(scale.max() / scale.min()) > 1.05, "scales alike would hide a missing fold"
    export_drafter(drafter, scale, tmp_path / "out", torch.float32)
    loaded = load_drafter(tmp_path / "out")
    taps = torch.randn(7, 32 * len(arm[1]))
    torch.testing.assert_close(loaded.fuse_taps(taps), drafter.fuse_taps(taps / scale))
    export_drafter(drafter, scale, tmp_path / "half")
    half = load_drafter(tmp_path / "half")
    for (name, one), (_, two) in zip(
        loaded.state_dict().items(), half.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=2**-8, atol=1e-30, msg=name)
    # Folded and exported, it still drafts what the target writes far better than chance.
    prompts = [p.tokens for p in tiny_prompts()]
    answers = greedy_answers(tiny_target, prompts, 20, arm[1])
    figures = [draft_answer(half, tiny_target.embedding, a, 3)[0] for a in answers]
    assert sum(f.accepted_at[0] for f in figures) / sum(f.cycles for f in figures) > 0.1


@pytest.mark.parametrize("arm", ARMS, ids=["edsd", "eagle3"])
def test_a_second_round_starts_where_the_first_ended(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, arm: tuple[str, tuple[int, ...]]
) -> None:
    first = start(tiny_store, tiny_target, tmp_path / "a", arm)
    run_fit(first, lambda line: None)
    export_drafter(first.drafter, first.side.tap_scale, tmp_path / "out", torch.float32)
    again = replace(SETTINGS, start=str(tmp_path / "out"))
    second = start(tiny_store, tiny_target, tmp_path / "b", arm, again)
    assert training_loss(second) == pytest.approx(training_loss(first), rel=1e-5)
    run_fit(second, lambda line: None, stop_after=2)
    # The same weights elsewhere are the same start; other weights are another run.
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = replace(SETTINGS, start=str(tmp_path / "moved"))
    assert start(tiny_store, tiny_target, tmp_path / "b", arm, moved).step == 2
    export_drafter(second.drafter, second.side.tap_scale, tmp_path / "moved", torch.float32)
    with pytest.raises(ValueError, match=r"weights of fit\.start"):
        start(tiny_store, tiny_target, tmp_path / "b", arm, moved)


def test_a_start_that_does_not_fit_is_refused(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """Other taps, and another draft vocabulary of the same size."""
    first = start(tiny_store, tiny_target, tmp_path / "a", ARMS[0])
    export_drafter(first.drafter, first.side.tap_scale, tmp_path / "out", torch.float32)
    settings = replace(SETTINGS, start=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"differs in .*architectures"):
        start(tiny_store, tiny_target, tmp_path / "b", ARMS[1], settings)
    with pytest.raises(ValueError, match="differs in target_layer_ids"):
        start(tiny_store, tiny_target, tmp_path / "c", ("EDSD", (0, 2)), settings)
    first.drafter.d2t.add_(1)
    export_drafter(first.drafter, first.side.tap_scale, tmp_path / "out", torch.float32)
    with pytest.raises(ValueError, match="differs in the draft vocabulary"):
        start(tiny_store, tiny_target, tmp_path / "d", ARMS[0], settings)


def test_scale_folding_is_exact_in_powers_of_two() -> None:
    fc, h = torch.randn(8, 12), torch.randn(5, 12)
    scale = 2.0 ** torch.randint(-6, 7, (12,))
    torch.testing.assert_close(
        h @ fold_tap_scale(fc, scale).T, (h / scale) @ fc.T, rtol=1e-6, atol=1e-5
    )
    assert torch.equal(fold_tap_scale(fc, scale) * scale, fc)


def test_a_poisoned_sample_stops_the_run_and_is_named(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in the store: the batch is named, and neither weights nor checkpoint take harm."""
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0])
    run_fit(fit, lambda line: None, stop_after=3)
    before = {name: value.clone() for name, value in fit.drafter.state_dict().items()}
    whole = Store.sample

    def poisoned(store: Store, *given: Any) -> Sample:
        sample = whole(store, *given)
        return replace(sample, features=sample.features * torch.nan)

    monkeypatch.setattr(Store, "sample", poisoned)
    plan = plan_epoch(fit.samples.train, SETTINGS.rows, SETTINGS.seed, 0)
    with pytest.raises(RuntimeError, match=rf"step 4: .* prompt {plan[3][0].prompt_id}\b"):
        run_fit(fit, lambda line: None)
    assert all(torch.equal(before[k], v) for k, v in fit.drafter.state_dict().items())
    assert start(tiny_store, tiny_target, tmp_path, ARMS[0]).step == 3


def test_a_batch_with_nothing_to_learn_from_changes_nothing(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """No token of the answers is in the draft vocabulary."""
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0])
    fit.drafter.t2d.zero_()
    before = fit.drafter.fc.weight.clone()
    run_fit(fit, lambda line: None, stop_after=2)
    assert fit.step == 2
    assert torch.equal(fit.drafter.fc.weight, before)


def test_edtrain_follows_its_schedules(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """What an epoch costs is what its schedule says, counted from the store itself."""
    settings = replace(SETTINGS, epochs=3, max_steps=5, mask_gamma=20.0)
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0], settings)
    run_fit(fit, lambda line: None)
    rows = [entry.answer_rows for entry in fit.samples.train]
    for epoch, (steps, masked) in enumerate([(1, 40.0), (3, 20.0), (5, 0.0)], 1):
        cost = fit.costs.epochs[epoch]
        assert cost.layer_rows == sum(max(0, n - i) for n in rows for i in range(steps))
        in_vocabulary = 0
        for entry in fit.samples.train:
            s = tiny_store.sample(entry)
            rows_judged = slice(s.prompt_length, None)
            kept = (
                learned_rows(s.entropy[rows_judged], masked) & fit.drafter.t2d[s.best][rows_judged]
            )
            in_vocabulary += sum(int(kept[i:].sum()) for i in range(steps))
        assert cost.head_rows == in_vocabulary


def test_prompts_are_learned_from_where_they_differ(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=2, steps=(2,), prompt_rows=True)
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0], settings)
    assert fit.samples.prompt_from == 0, "these prompts share nothing"
    run_fit(fit, lambda line: None, stop_after=2)
    resumed = start(tiny_store, tiny_target, tmp_path, ARMS[0], settings)
    run_fit(resumed, lambda line: None)
    # All rows but the last two of each sequence start a chain of two steps.
    chains = [entry.length - 2 for entry in fit.samples.train]
    for epoch in (1, 2):
        assert resumed.costs.epochs[epoch].layer_rows == sum(2 * n - 1 for n in chains)


def test_the_shared_head_of_prompts_is_found(tmp_path: Path) -> None:
    write_meta(tmp_path, StoreMeta((0,), 2))
    rows = [(9, 8, 7, 1, 2), (9, 8, 7, 3, 3, 3), (9, 8, 7, 1, 4)]
    samples = [
        Sample(i, len(row) - 2, torch.tensor(row), *_filler(len(row) - 1))
        for i, row in enumerate(rows)
    ]
    write_shard(tmp_path / "a.safetensors", samples)
    assert shared_prefix(Store(tmp_path)) == 3
    other = Sample(3, 3, torch.tensor((1, 8, 7, 1, 2)), *_filler(4))
    write_shard(tmp_path / "b.safetensors", [other])
    assert shared_prefix(Store(tmp_path)) == 1, "at least the first token"


def _filler(rows: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(rows, 2),
        torch.zeros(rows, 2),
        torch.zeros(rows),
        torch.zeros(rows, dtype=torch.long),
    )


def test_rate_warms_up_and_falls() -> None:
    settings = FitSettings(learning_rate=1.0, warmup=0.1, final_rate=0.05)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_an_export_replaces_an_earlier_one_whole_or_not_at_all(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    fit = start(tiny_store, tiny_target, tmp_path / "fit", ARMS[0])
    out, scale = tmp_path / "out", fit.side.tap_scale
    export_drafter(fit.drafter, scale, out)
    (out / "README.md").write_text("mine")
    before = (out / "model.safetensors").read_bytes()
    fit.drafter.fc.weight.data.mul_(2)
    with files_no_larger_than(1000), pytest.raises(ValueError, match=r"out: cannot be written"):
        export_drafter(fit.drafter, scale, out)
    assert (out / "model.safetensors").read_bytes() == before
    export_drafter(fit.drafter, scale, out)
    assert (out / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit", "out"]


def test_an_export_leaves_what_is_no_drafter_alone(
    tiny_store: Store, tiny_target: PlainTarget, tiny_folder: Path, tmp_path: Path
) -> None:
    """Also a target, which has a config.json too."""
    fit = start(tiny_store, tiny_target, tmp_path / "fit", ARMS[0])
    shutil.copytree(tiny_folder, tmp_path / "target")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("target", "notes", "file"):
        before = sorted((tmp_path / name).rglob("*"))
        with pytest.raises(ValueError, match=rf"{name}: .*choose another destination"):
            export_drafter(fit.drafter, fit.side.tap_scale, tmp_path / name)
        assert sorted((tmp_path / name).rglob("*")) == before
