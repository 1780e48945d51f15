"""Fits of a comparison in processes of their own: real ones, killed and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sgl_entropy.train.samples.store import Store
from tests.train.fit.test_processes import SETTINGS, work_folder

ARMS = ("a", "b", "c")
MORE = [
    "fit.epochs=30",
    "fit.mask_gamma=3",
    "fit.checkpoint_seconds=0",
    "drafter.eagle3_layers=[0]",
]


@contextmanager
def comparing(work: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """`train compare` of three arms, two at once, when both have learned something."""
    config = work.parent / "compare.json"
    arms = [{"name": name, "algorithm": "EDSD", "set": []} for name in ARMS]
    own = [f"target={target}", f"work={work}"]
    config.write_text(json.dumps({"arms": arms, "set": [*own, *SETTINGS, *MORE]}))
    command = [sys.executable, "-m", "sgl_entropy", "train", "compare", "--config", str(config)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        until = time.monotonic() + 200
        while not all((folder(work, a) / "checkpoint.previous.pt").exists() for a in ARMS[:2]):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        yield process


def folder(work: Path, arm: str) -> Path:
    return work / "compare" / arm / "seed-0"


def workers_of(session: int) -> list[int]:
    """Process numbers of the fits in this session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(state[3]) == session and state[0] != "Z" and b"spawn_main" in command:
            found.append(int(path.name))
    return sorted(found)


def kept(work: Path, arm: str, said: str) -> None:
    """It ended after a step that its checkpoint holds."""
    step = torch.load(folder(work, arm) / "checkpoint.pt")["step"]
    assert f"{arm}, seed 0: stopped at step {step} of " in said


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["the parent", "all, as a terminal does"])
def test_an_interrupted_comparison_ends_with_its_workers(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, whole: bool
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    with comparing(work, tiny_folder) as process:
        if whole:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert workers_of(process.pid) == []
    for arm in ARMS[:2]:
        kept(work, arm, err)
    assert not folder(work, "c").exists(), "no worker took the place of one that ended"
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_killed_worker_ends_the_comparison_and_the_others_keep_their_steps(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    with comparing(work, tiny_folder) as process:
        first, _ = workers_of(process.pid)
        os.kill(first, signal.SIGKILL)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    ended = next(arm for arm in ARMS[:2] if f"{arm}, seed 0: its process ended by SIGKILL" in err)
    kept(work, next(arm for arm in ARMS[:2] if arm != ended), err)
    assert workers_of(process.pid) == []
    assert not folder(work, "c").exists()


def test_a_killed_comparison_leaves_no_worker_behind(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    with comparing(work, tiny_folder) as process:
        process.kill()
        _, err = process.communicate(timeout=100)  # at the end of the last that writes there
    assert workers_of(process.pid) == []
    for arm in ARMS[:2]:
        kept(work, arm, err)
