"""Answers written here without features, and batches computed without a store."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.reading import likeliest
from sgl_entropy.train.answers.decode import Decoding, choose
from sgl_entropy.train.answers.file import ROUND, Answered, read_answers
from sgl_entropy.train.answers.local import write_answers
from sgl_entropy.train.machine.processes import ProcessGroup
from sgl_entropy.train.samples import open_store
from sgl_entropy.train.samples.batches import collate, shortened
from sgl_entropy.train.samples.features import refuse_false
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.schedules import learned_columns, learned_rows
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import data, drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import TAPS, tiny_prompts


def quiet(line: str) -> None:
    del line


def answered(store: Store) -> list[Answered]:
    return [
        Answered(e.prompt_id, e.prompt_length, tuple(store.tokens(e).tolist()))
        for e in store.entries
    ]


def write(
    path: Path, target: PlainTarget, temperatures: list[float], wanted: int = 10_000, slots: int = 5
) -> list[Answered]:
    write_answers(path, target, tiny_prompts(), temperatures, wanted, Decoding(20, slots))
    return sorted(read_answers(path), key=lambda one: one.prompt_id)


@pytest.mark.parametrize("slots", [1, 5, 64])
def test_greedy_answers_are_those_of_the_store(
    tiny_target: PlainTarget, tiny_store: Store, tmp_path: Path, slots: int
) -> None:
    found = write(tmp_path / "answers.jsonl", tiny_target, [0.0], slots=slots)
    # The store leaves out answers of one token.
    assert [one for one in found if one.answer_length > 1] == answered(tiny_store)
    assert {one.prompt_id for one in found} == {p.prompt_id for p in tiny_prompts()}


def test_rounds_are_numbered_and_a_killed_run_goes_on(
    tiny_target: PlainTarget, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    whole = write(path, tiny_target, [0.0, 0.8])
    assert [one.prompt_id for one in whole] == [*range(24), *range(ROUND, ROUND + 24)]
    assert [one.temperature for one in whole] == [0.0] * 24 + [0.8] * 24
    assert [o.tokens for o in whole[:24]] != [o.tokens for o in whole[24:]]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:30]) + "\n" + lines[30][:20])
    again = write(path, tiny_target, [0.0, 0.8])
    assert [one.prompt_id for one in again] == [one.prompt_id for one in whole]
    assert path.read_text().splitlines()[:30] == lines[:30], "what was written stays"


def test_the_token_budget_finishes_what_is_begun(tiny_target: PlainTarget, tmp_path: Path) -> None:
    whole = {one.prompt_id: one for one in write(tmp_path / "all.jsonl", tiny_target, [0.0])}
    part = write(tmp_path / "part.jsonl", tiny_target, [0.0], wanted=60)
    assert 60 <= sum(one.answer_length for one in part) < 60 + 20, "as many as bring the tokens"
    assert all(whole[one.prompt_id] == one for one in part), "no answer is cut short"


def test_samples_follow_the_targets_distribution(tiny_target: PlainTarget) -> None:
    torch.manual_seed(5)
    final = torch.randn(1, tiny_target.hidden_size).expand(20_000, -1)
    draws = torch.Generator().manual_seed(3)
    drawn = torch.bincount(choose(tiny_target, final, 0.7, draws), minlength=160).double()
    expected = torch.softmax(tiny_target.logits(final[0]).double() / 0.7, -1) * 20_000
    often = expected >= 5
    chi = ((drawn - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert chi < freedom + 5 * (2 * freedom) ** 0.5
    wrong = torch.softmax(tiny_target.logits(final[0]).double(), -1) * 20_000
    often = wrong >= 5
    assert ((drawn - wrong)[often] ** 2 / wrong[often]).sum() > 3 * int(often.sum())


def test_another_temperature_is_found(tiny_target: PlainTarget, tmp_path: Path) -> None:
    sampled = [
        one for one in write(tmp_path / "a.jsonl", tiny_target, [0.0, 1.0]) if one.temperature
    ]
    refuse_false(tiny_target, sampled, "tiny", some=24)
    false = [replace(one, temperature=0.3) for one in sampled]
    with pytest.raises(ValueError, match="another temperature"):
        refuse_false(tiny_target, false, "tiny", some=24)
    with pytest.raises(ValueError, match="another model"):
        refuse_false(tiny_target, [replace(one, temperature=0.0) for one in sampled], "tiny")


@pytest.mark.parametrize("masked", [0.0, 30.0])
@pytest.mark.parametrize("prompt_from", [None, 1])
def test_a_batch_of_the_device_is_the_collated_one(
    tiny_target: PlainTarget, tiny_store: Store, masked: float, prompt_from: int | None
) -> None:
    store = OnlineStore(tiny_target, answered(tiny_store), TAPS, Path("answers"))
    for part in (store.entries[:1], store.entries[3:9], store.entries[-4:]):
        samples = [store.sample(entry, (2, 0)) for entry in part]
        expected = collate(samples, 3, masked, prompt_from)
        found = store.batch(part, (2, 0), 3, masked, prompt_from)
        for field in fields(expected):
            one, other = getattr(expected, field.name), getattr(found, field.name)
            assert one.dtype == other.dtype, field.name
            torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-3, msg=field.name)


def test_a_shortened_answer_is_a_whole_one_cut(tiny_target: PlainTarget, tiny_store: Store) -> None:
    """From the store and from the target, collated and held: nothing behind the cut is seen, and
    what is before it stays as it was."""
    online = OnlineStore(tiny_target, answered(tiny_store), TAPS, Path("answers"))
    for store in (tiny_store, online):
        part = shortened(store.entries, 4)
        assert max(e.length - e.prompt_length for e in store.entries) > 4
        for whole, cut in zip(store.entries, part, strict=True):
            assert cut.length == min(whole.length, whole.prompt_length + 4)
            one, other = store.sample(whole, (2, 0)), store.sample(cut, (2, 0))
            assert other.tokens.tolist() == one.tokens.tolist()[: cut.length]
            assert other.tokens.tolist() == store.tokens(cut).tolist()
            rows = cut.length - 1
            for name in ("features", "final", "entropy", "best"):
                found, expected = getattr(other, name), getattr(one, name)[:rows]
                torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-3, msg=name)
    some = shortened(online.entries, 4)[2:11]
    expected = collate(
        [tiny_store.sample(e, (2, 0)) for e in shortened(tiny_store.entries, 4)][2:11], 3
    )
    assert online.keep(some, (2, 0), None, 1.0)
    found = online.batch(some, (2, 0), 3)
    for field in fields(expected):
        one, other = getattr(expected, field.name), getattr(found, field.name)
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-3, msg=field.name)
    assert shortened(online.entries, 0) == online.entries


@pytest.mark.parametrize("prompt_from", [None, 1])
def test_held_rows_are_the_computed_ones(
    tiny_target: PlainTarget, tiny_store: Store, prompt_from: int | None
) -> None:
    store = OnlineStore(tiny_target, answered(tiny_store), TAPS, Path("answers"))
    part = store.entries[2:15]
    expected = [store.batch(some, (2, 0), 3, 30.0, prompt_from) for some in (part[:5], part[9:])]
    assert not store.keep(part, (2, 0), prompt_from, 1e-6), "too much for a kilobyte"
    assert store.keep(part, (2, 0), prompt_from, 1.0)
    held = [store.batch(some, (2, 0), 3, 30.0, prompt_from) for some in (part[:5], part[9:])]
    for one, other in zip(expected, held, strict=True):
        for field in fields(one):
            torch.testing.assert_close(
                getattr(one, field.name), getattr(other, field.name), rtol=2**-7, atol=1e-3
            )
    other = store.batch(part[:2], (1,), 3, 0.0, prompt_from)
    assert other.features.shape[-1] == 32, "other taps are computed"


@pytest.mark.gpu
def test_a_gpu_answers_and_batches_as_the_cpu_does(tiny_store: Store, tiny_folder: Path) -> None:
    """On a machine with CUDA: pytest -m gpu tests/train/test_online.py"""
    there = PlainTarget.from_folder(tiny_folder, device="cuda")
    here = PlainTarget.from_folder(tiny_folder)
    stores = [OnlineStore(t, answered(tiny_store), TAPS, Path("answers")) for t in (here, there)]
    one, other = (store.batch(store.entries[:9], (2, 0), 3, 30.0) for store in stores)
    for field in fields(one):
        torch.testing.assert_close(
            getattr(one, field.name), getattr(other, field.name).cpu(), rtol=2**-6, atol=1e-2
        )


@pytest.mark.gpu
def test_a_gpu_writes_what_the_cpu_writes(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    """On a machine with CUDA: pytest -m gpu tests/train/test_online.py"""
    there = PlainTarget.from_folder(tiny_folder, device="cuda")
    found = write(tmp_path / "answers.jsonl", there, [0.0])
    assert [one for one in found if one.answer_length > 1] == answered(tiny_store)


def test_masked_columns_are_masked_rows(tiny_store: Store) -> None:
    chance = torch.Generator().manual_seed(0)
    pieces = [torch.randint(0, 4, (n,), generator=chance).float() for n in (1, 7, 30, 12, 100)]
    for percent in (0.0, 3.0, 25.0, 60.0):
        found = learned_columns(
            torch.cat(pieces), torch.tensor([len(p) for p in pieces]), 100, percent
        ).split([len(p) for p in pieces])
        for piece, kept in zip(pieces, found, strict=True):
            assert torch.equal(kept, learned_rows(piece, percent))


def test_ties_of_bfloat16_are_decided_in_float32(tiny_folder: Path) -> None:
    target = PlainTarget.from_folder(tiny_folder, torch.bfloat16)
    final = torch.randn(600, target.hidden_size, generator=torch.Generator().manual_seed(2))
    final = final.to(torch.bfloat16)
    exact = (final.double() @ target.head.double().T).argmax(-1)
    logits = target.logits(final)
    assert (logits.argmax(-1) != exact).any(), "this test needs ties"
    assert torch.equal(likeliest(target, final, logits), exact)


def test_prepare_writes_answers_for_a_training_without_a_store(
    tiny_folder: Path, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        *(f"work={tmp_path}", f"target={tiny_folder}", "drafter.edsd_layers=[1, 2]"),
        *("generate.dtype=float32", "generate.max_new_tokens=20", "generate.slots=5"),
        *("fit.online=true", "generate.temperatures=[0, 0.9]", "fit.validation_every=12"),
    ]
    lines: list[str] = []
    data.prepare(Workspace.of(load_settings(None, asked)), None, 1, lines.append)
    assert "answer tokens in" in lines[-1]
    found = read_answers(tmp_path / "answers.jsonl")
    assert sum(not one.temperature for one in found) == 24
    store = open_store.open_store(Workspace.of(load_settings(None, asked)))
    assert len(store.entries) == sum(one.answer_length > 1 for one in found)
    with pytest.raises(ValueError, match=r"generate\.temperatures.*greedy"):
        data.generate(Workspace.of(load_settings(None, [*asked, "fit.online=false"])), quiet)


def test_each_process_computes_on_its_own_device(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun every process has a GPU: features of all of them must not come from one."""
    devices: list[str] = []

    def from_folder(folder: object, dtype: object = None, device: str = "cpu") -> PlainTarget:
        devices.append(device)
        raise InterruptedError

    monkeypatch.setattr(PlainTarget, "from_folder", from_folder)
    asked = [f"work={tmp_path}", f"target={tiny_folder}", "drafter.edsd_layers=[1, 2]"]
    asked += ["drafter.draft_vocab_size=96"]
    settings = load_settings(None, [*asked, "fit.online=true", "generate.dtype=float32"])
    for device in ("cuda:0", "cuda:3"):
        with pytest.raises(InterruptedError):
            drafter.make_fit(
                Workspace.of(settings), "EDSD", group=ProcessGroup(device=torch.device(device))
            )
    assert devices == ["cuda:0", "cuda:3"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([9] * 12, "come from another model, or were sampled"),
        ([160, 9], "prompt 0: its tokens are not all among the 160 of"),
        ([9] * 130, "its 133 tokens are more than the 128 positions of"),
    ],
)
def test_answers_of_another_target_are_refused_before_more_are_written(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: list[int],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = [{"prompt_id": i, "tokens": [5 + i, 7, 9]} for i in range(4)]
    held = [
        {"prompt_id": i, "prompt_length": 3, "tokens": [5 + i, 7, 9, *answer]} for i in range(2)
    ]
    for name, lines in (("prompts", rows), ("answers", held)):
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    asked = [f"work={tmp_path}", f"target={tiny_folder}", "drafter.edsd_layers=[1, 2]"]
    asked += ["generate.dtype=float32", "generate.max_new_tokens=20", "fit.online=true"]
    settings = load_settings(None, asked)
    with pytest.raises(ValueError, match=message):
        data.prepare(Workspace.of(settings), None, 1, quiet)
    assert len(read_answers(tmp_path / "answers.jsonl")) == 2
    with pytest.raises(ValueError, match=message):
        open_store.open_store(Workspace.of(settings))
    with pytest.raises(ValueError, match=message):
        data.features(Workspace.of(load_settings(None, [*asked, "fit.online=false"])), quiet)
