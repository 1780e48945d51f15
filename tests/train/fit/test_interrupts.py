"""A fit that a signal ends keeps its steps, and goes on to the weights of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.machine.interrupts import Interrupt
from sgl_entropy.train.samples.store import Store
from tests.train.fit.test_processes import TORCHRUN, fit_command, fit_here, validations, work_folder
from tests.train.fit.test_trainer import ARMS, SETTINGS, start

LONG = ("fit.epochs=15", "fit.mask_gamma=3")
# A checkpoint a step, so that it is seen from outside when some are done.
EVERY_STEP = "fit.checkpoint_seconds=0"


def checkpoint(work: Path) -> dict[str, Any]:
    held: dict[str, Any] = torch.load(work / "edsd" / "checkpoint.pt")
    return held


@pytest.fixture(scope="module")
def unbroken(
    tiny_store: Store, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The work folder of a fit that nobody disturbed."""
    work = work_folder(tmp_path_factory.mktemp("unbroken") / "work", tiny_store)
    fit_here(work, tiny_folder, LONG)
    return work


def killed(
    work: Path, target: Path, number: int, launcher: Sequence[str] = (), *more: str
) -> subprocess.CompletedProcess[str]:
    """A fit that gets the signal when it has learned something."""
    command = fit_command(work, target, launcher, [*LONG, *more])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 200
        while not (work / "edsd" / "checkpoint.previous.pt").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["ctrl-c", "term", "kill"],
)
def test_a_killed_fit_goes_on_to_the_same_weights(
    tiny_store: Store, tiny_folder: Path, unbroken: Path, tmp_path: Path, number: int, code: int
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    ended = killed(work, tiny_folder, number, (), EVERY_STEP)
    assert ended.returncode == code, ended.stderr
    step, whole = checkpoint(work)["step"], checkpoint(unbroken)
    assert 0 < step < whole["step"]
    if number != signal.SIGKILL:
        assert f"stopped at step {step} of {whole['step']}" in ended.stderr
        assert "the same command goes on from there" in ended.stderr
        assert "Traceback" not in ended.stderr
    fit_here(work, tiny_folder, LONG)
    for name, weight in whole["drafter"].items():
        assert torch.equal(checkpoint(work)["drafter"][name], weight), name
    assert [row["validation"] for row in validations(work)] == [
        row["validation"] for row in validations(unbroken)
    ]


@pytest.mark.slow
def test_all_processes_end_after_the_same_step(
    tiny_store: Store, tiny_folder: Path, unbroken: Path, tmp_path: Path
) -> None:
    """torchrun is interrupted; one process goes on from the middle of what two learned."""
    work = work_folder(tmp_path / "work", tiny_store)
    ended = killed(work, tiny_folder, signal.SIGINT, TORCHRUN, EVERY_STEP)
    assert ended.returncode, "torchrun says that it was interrupted"
    step, whole = checkpoint(work)["step"], checkpoint(unbroken)
    assert 0 < step < whole["step"]
    assert f"stopped at step {step} of {whole['step']}" in ended.stderr
    fit_here(work, tiny_folder, LONG)
    held = checkpoint(work)
    assert held["step"] == whole["step"]
    for name, weight in whole["drafter"].items():
        torch.testing.assert_close(held["drafter"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_a_signal_between_two_steps_is_followed_after_the_next(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """In this very process: the handlers of before are back, and the step is kept."""
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0])
    learn, before = fit.learn, signal.getsignal(signal.SIGINT)

    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return learn(*given)

    fit.learn = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_fit(fit, lambda line: None)
    assert signal.getsignal(signal.SIGINT) == before
    assert start(tiny_store, tiny_target, tmp_path, ARMS[0]).step == 1


def test_an_epoch_that_was_not_validated_is_validated_by_the_next_run(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """Ended between an epoch's last step and its row in the log, also the last epoch's."""

    def rows(folder: Path) -> list[Any]:
        log = folder / "fit.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [[r["epoch"], r["validation"]] for r in map(json.loads, lines) if "validation" in r]

    run_fit(start(tiny_store, tiny_target, tmp_path / "a", ARMS[0]), lambda line: None)
    for epoch in (0, 2):
        fit = start(tiny_store, tiny_target, tmp_path / "b", ARMS[0])
        ends = sum(len(fit.plan(e)) for e in range(epoch + 1))
        run_fit(fit, lambda line: None, stop_after=ends)
        assert [row[0] for row in rows(tmp_path / "b")] == list(range(1, epoch + 1))
    for _ in range(2):
        run_fit(start(tiny_store, tiny_target, tmp_path / "b", ARMS[0]), lambda line: None)
        assert rows(tmp_path / "b") == rows(tmp_path / "a")


def test_an_interrupt_in_a_validation_costs_no_step(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0])
    validate = fit.validate

    def interrupted(entries: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return validate(entries)

    fit.validate = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_fit(fit, lambda line: None)
    assert start(tiny_store, tiny_target, tmp_path, ARMS[0]).step == len(fit.plan(0))


def test_a_damaged_checkpoint_costs_one_generation_and_changes_nothing(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    unbroken = run_fit(start(tiny_store, tiny_target, tmp_path / "a", ARMS[0]), lambda line: None)
    for stop in (2, 4):
        fit = start(tiny_store, tiny_target, tmp_path / "b", ARMS[0])
        run_fit(fit, lambda line: None, stop_after=stop)
    path = tmp_path / "b" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-500])
    fit = start(tiny_store, tiny_target, tmp_path / "b", ARMS[0])
    assert fit.step == 2
    told: list[str] = []
    resumed = run_fit(fit, told.append)
    assert str(path) in told[0]
    assert "damaged" in told[0]
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_a_log_without_room_costs_no_step(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    fit = start(tiny_store, tiny_target, tmp_path, ARMS[0], replace(SETTINGS, epochs=1))
    (tmp_path / "fit.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"fit\.jsonl: cannot be written: No space left"):
        run_fit(fit, lambda line: None)
    again = start(tiny_store, tiny_target, tmp_path, ARMS[0], replace(SETTINGS, epochs=1))
    assert again.step == len(fit.plan(0))


def test_a_line_that_was_cut_does_not_swallow_the_next(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    (tmp_path / "fit.jsonl").write_text('{"time": 1, "epo')
    run_fit(start(tiny_store, tiny_target, tmp_path, ARMS[0]), lambda line: None)
    lines = (tmp_path / "fit.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines[1:]] == [1, 2, 3]


def test_signals_that_are_ignored_stay_so_and_other_threads_have_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    handlers = []

    def elsewhere() -> None:
        with Interrupt():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_who_insists_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun repeats a Ctrl-C at once; a person does so seconds later."""
    clock = iter([0.0, 0.1, 3.0])
    monkeypatch.setattr("sgl_entropy.train.machine.interrupts.time.monotonic", lambda: next(clock))
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
