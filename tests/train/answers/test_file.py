"""Answers from elsewhere: a file that survives a crash, and features that refuse foreign text."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.file import Answered, in_batches, read_answers
from sgl_entropy.train.answers.from_server import ServerRefused, collect_answers
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.features import agreement, check_generated, features_of
from sgl_entropy.train.samples.shards import write_shard
from sgl_entropy.train.samples.store import Store, StoreMeta, write_meta
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import data
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import tiny_prompts

PROMPTS = [Prompt(i, (7, 8, i)) for i in range(12)]


def quiet(line: str) -> None:
    pass


def echo(prompt: Prompt) -> Sequence[int]:
    return [prompt.prompt_id, 5, 2]


def test_answers_are_asked_once_and_only_as_many_as_wanted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    asked: list[int] = []

    def ask(prompt: Prompt) -> Sequence[int]:
        asked.append(prompt.prompt_id)
        return echo(prompt)

    assert collect_answers(path, PROMPTS, ask, 9, 1, quiet) == 9
    assert asked == [0, 1, 2]
    assert collect_answers(path, PROMPTS, ask, 10_000, 4, quiet) == 36
    assert sorted(asked) == list(range(12)), "none twice"
    held = read_answers(path)
    assert {one.prompt_id: one.tokens for one in held}[11] == (7, 8, 11, 11, 5, 2)
    assert all(one.prompt_length == 3 for one in held)


def test_requests_run_side_by_side(tmp_path: Path) -> None:
    """Four must be under way together, or the barrier breaks."""
    barrier = threading.Barrier(4, timeout=20)

    def ask(prompt: Prompt) -> Sequence[int]:
        barrier.wait()
        return echo(prompt)

    assert collect_answers(tmp_path / "a", PROMPTS, ask, 10_000, 4, quiet) == 36


def test_a_line_cut_by_a_crash_is_dropped_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    collect_answers(path, PROMPTS[:3], echo, 10_000, 1, quiet)
    path.write_bytes(path.read_bytes()[:-4])
    assert [one.prompt_id for one in read_answers(path)] == [0, 1]
    collect_answers(path, PROMPTS[:4], echo, 10_000, 1, quiet)
    assert [one.prompt_id for one in read_answers(path)] == [0, 1, 2, 3]


def test_a_dead_server_ends_the_stage_and_keeps_what_came(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def ask(prompt: Prompt) -> Sequence[int]:
        if prompt.prompt_id == 5:
            raise ConnectionRefusedError("connection refused")
        return echo(prompt)

    with pytest.raises(ConnectionRefusedError):
        collect_answers(path, PROMPTS, ask, 10_000, 1, quiet)
    assert [one.prompt_id for one in read_answers(path)] == [0, 1, 2, 3, 4]


def test_a_refused_prompt_is_left_out_and_said(tmp_path: Path) -> None:
    lines: list[str] = []

    def ask(prompt: Prompt) -> Sequence[int]:
        if prompt.prompt_id in (2, 3):
            raise ServerRefused("too long")
        return echo(prompt)

    collect_answers(tmp_path / "a", PROMPTS, ask, 10_000, 1, lines.append)
    assert len(read_answers(tmp_path / "a")) == 10
    assert "prompt 2 left out: too long" in lines


def test_a_server_that_refuses_everything_is_not_asked_to_the_end(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(prompt: Prompt) -> Sequence[int]:
        asked.append(prompt.prompt_id)
        raise ServerRefused("wrong model")

    with pytest.raises(RuntimeError, match="the first 8 prompts were all refused: wrong model"):
        collect_answers(tmp_path / "a", PROMPTS, ask, 10_000, 1, quiet)
    assert len(asked) < 12


def test_a_run_goes_on_after_the_prompts_that_were_refused(tmp_path: Path) -> None:
    asked: list[int] = []

    def ask(prompt: Prompt) -> Sequence[int]:
        asked.append(prompt.prompt_id)
        if prompt.prompt_id < 9:
            raise ServerRefused("too long")
        return echo(prompt)

    path = tmp_path / "answers.jsonl"
    with pytest.raises(RuntimeError, match=r"to ask them again, delete .*refused\.jsonl"):
        collect_answers(path, PROMPTS, ask, 10_000, 1, quiet)
    lines: list[str] = []
    assert collect_answers(path, PROMPTS, ask, 10_000, 1, lines.append) == 9
    assert asked == list(range(12)), "none twice"
    assert lines[0].startswith("8 prompts were refused before; delete")
    (tmp_path / "refused.jsonl").unlink()
    collect_answers(path, PROMPTS, echo, 10_000, 1, quiet)
    assert len(read_answers(path)) == 12


def test_an_interrupt_ends_at_once_and_loses_no_finished_answer(tmp_path: Path) -> None:
    """Half of the requests hang; the signal comes when the other half is answered."""
    path = tmp_path / "answers.jsonl"
    code = f"""
import os, signal, threading
from pathlib import Path
from sgl_entropy.train.answers.from_server import collect_answers
from sgl_entropy.train.prompts.order import Prompt
answered = threading.Semaphore(0)
def ask(prompt):
    if prompt.prompt_id % 2:
        threading.Event().wait()
    answered.release()
    return [5, 2]
def interrupt():
    for _ in range(50):
        answered.acquire()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
prompts = [Prompt(i, (7, 8)) for i in range(100)]
collect_answers(Path({str(path)!r}), prompts, ask, 10_000, 64, print)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr
    held = read_answers(path)
    assert sorted(one.prompt_id for one in held) == list(range(0, 100, 2))


def test_a_full_disk_is_said_and_the_answers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    collect_answers(path, PROMPTS[:3], echo, 10_000, 1, quiet)
    path.with_name("full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"the disk is full: .*/full could not be written.*kept"):
        collect_answers(tmp_path / "full", PROMPTS, echo, 10_000, 2, quiet)
    assert len(read_answers(path)) == 3


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "{}",
        '{"prompt_id": 1, "prompt_length": 3, "tokens": [1, 2]}',
        '{"prompt_id": 1, "prompt_length": 0, "tokens": [1, 2]}',
        '{"prompt_id": 1, "prompt_length": 1, "tokens": 5}',
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt_id": 0, "prompt_length": 1, "tokens": [1, 2]}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: no answer"):
        read_answers(path)


def test_batches_hold_every_sequence_within_the_row_limit() -> None:
    answers = [Answered(i, 1, (0,) * n) for i, n in enumerate([3, 5, 5, 30, 4, 2, 2])]
    batches = list(in_batches(answers, 12))
    assert [one for batch in batches for one in batch] == answers
    for batch in batches:
        rows = len(batch) * max(len(one.tokens) for one in batch)
        assert rows <= 12 or len(batch) == 1


def from_store(store: Store) -> list[Answered]:
    return [
        Answered(e.prompt_id, e.prompt_length, tuple(store.tokens(e).tolist()))
        for e in store.entries
    ]


@pytest.mark.slow
def test_features_of_given_answers_are_those_of_generation(
    tiny_store: Store, tiny_target: PlainTarget
) -> None:
    answers = from_store(tiny_store)
    samples = features_of(tiny_target, answers, tiny_store.tap_layers)
    for entry, found in zip(tiny_store.entries, samples, strict=True):
        held = tiny_store.sample(entry)
        assert (found.prompt_id, found.prompt_length) == (held.prompt_id, held.prompt_length)
        assert torch.equal(found.tokens, held.tokens)
        assert torch.equal(found.best, held.best)
        # The store rounds to bfloat16 what was computed in other batches.
        torch.testing.assert_close(found.features, held.features, rtol=2**-6, atol=1e-2)
        torch.testing.assert_close(found.final, held.final, rtol=2**-6, atol=1e-2)
        torch.testing.assert_close(found.entropy, held.entropy, rtol=1e-3, atol=1e-3)
    assert agreement(samples) == 1.0


@pytest.mark.gpu
def test_features_of_a_gpu_are_those_of_the_cpu(tiny_store: Store, tiny_folder: Path) -> None:
    """On a machine with CUDA: pytest -m gpu tests/train/test_answers.py"""
    answers = from_store(tiny_store)
    here, there = (
        features_of(PlainTarget.from_folder(tiny_folder, device=d), answers, tiny_store.tap_layers)
        for d in ("cpu", "cuda")
    )
    for one, two in zip(here, there, strict=True):
        assert torch.equal(one.best, two.best)
        torch.testing.assert_close(one.features, two.features, rtol=2**-6, atol=1e-2)
        torch.testing.assert_close(one.entropy, two.entropy, rtol=1e-3, atol=1e-3)


def test_answers_of_one_token_are_left_out(tiny_target: PlainTarget) -> None:
    assert features_of(tiny_target, [Answered(0, 2, (5, 6, 7))], (1,)) == []


def work(tmp_path: Path, target: Path, answers: Sequence[Answered]) -> TrainSettings:
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "".join(json.dumps(vars(one)) + "\n" for one in answers)
    (tmp_path / "answers.jsonl").write_text(lines)
    return load_settings(
        None,
        [
            f"work={tmp_path}",
            f"target={target}",
            "drafter.edsd_layers=[1, 2]",
            "drafter.draft_vocab_size=96",
            "generate.dtype=float32",
            "generate.max_new_tokens=20",
        ],
    )


@pytest.mark.slow
def test_the_features_stage_stores_given_answers_and_goes_on(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    answers = from_store(tiny_store)
    settings = work(tmp_path, tiny_folder, answers[:9])
    data.features(Workspace.of(settings), quiet)
    assert len(Store(tmp_path / "store").entries) == 9
    work(tmp_path, tiny_folder, answers)
    data.features(Workspace.of(settings), quiet)
    store = Store(tmp_path / "store", whole=True)
    assert from_store(store) == answers
    lines: list[str] = []
    data.features(Workspace.of(settings), lines.append)
    assert "nothing to do" in lines[-1]
    with pytest.raises(ValueError, match=r"generated with other settings \(answers\)"):
        data.generate(Workspace.of(settings), quiet)


@pytest.mark.usefixtures("one_process")
def test_a_damaged_shard_of_given_answers_is_made_again_as_the_hint_says(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = work(tmp_path, tiny_folder, from_store(tiny_store))
    data.features(Workspace.of(settings), quiet)
    shard = sorted((tmp_path / "store").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ValueError, match="remove these shards, and `train features` reads"):
        data.features(Workspace.of(settings), quiet)
    shard.unlink()
    data.features(Workspace.of(settings), quiet)
    assert from_store(Store(tmp_path / "store", whole=True)) == from_store(tiny_store)


def test_foreign_answers_are_refused(tiny_store: Store, tiny_folder: Path, tmp_path: Path) -> None:
    """The right prompts with text that another model wrote."""
    foreign = [
        replace(one, tokens=(*one.tokens[: one.prompt_length], *([9] * one.answer_length)))
        for one in from_store(tiny_store)
    ]
    settings = work(tmp_path, tiny_folder, foreign)
    with pytest.raises(ValueError, match="come from another model, or were sampled"):
        data.features(Workspace.of(settings), quiet)
    assert not (tmp_path / "store").exists(), "what is refused begins no store"


def test_generated_answers_that_are_not_the_targets_are_found(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    assert check_generated(tiny_store, tiny_target) == 1.0
    torn = []
    for entry in tiny_store.entries:
        sample = tiny_store.sample(entry)
        tokens = sample.tokens.clone()
        tokens[entry.prompt_length + 1 :: 3] = 9
        torn.append(replace(sample, tokens=tokens))
    write_meta(tmp_path, StoreMeta(tiny_store.tap_layers, 32))
    write_shard(tmp_path / "torn.safetensors", torn)
    with pytest.raises(RuntimeError, match="not its own"):
        check_generated(Store(tmp_path), tiny_target)


@pytest.mark.usefixtures("one_process")
def test_training_without_a_store_equals_training_from_it(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = work(tmp_path, tiny_folder, from_store(tiny_store))
    more = {"epochs": 2, "steps": (1, 2), "rows": 40, "validation_every": 12, "dtype": "float32"}
    drafter = replace(settings.drafter, draft_vocab_size=96)
    settings = replace(settings, drafter=drafter, fit=replace(settings.fit, **more))
    data.features(Workspace.of(settings), quiet)
    stored = pipeline.make_fit(Workspace.of(settings), "EDSD", tmp_path / "a")
    online = replace(settings, fit=replace(settings.fit, online=True))
    direct = pipeline.make_fit(Workspace.of(online), "EDSD", tmp_path / "b")
    run_fit(stored, quiet)
    run_fit(direct, quiet)
    assert direct.step == stored.step > 5
    for name, weight in stored.drafter.state_dict().items():
        other = direct.drafter.state_dict()[name]
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-3, msg=name)


def test_online_without_answers_says_what_is_missing(tiny_folder: Path, tmp_path: Path) -> None:
    settings = work(tmp_path, tiny_folder, [])
    settings = replace(settings, fit=replace(settings.fit, online=True))
    with pytest.raises(ValueError, match=r"fit\.online needs answers in .*prepare --server"):
        pipeline.make_fit(Workspace.of(settings), "EDSD", tmp_path / "a")
