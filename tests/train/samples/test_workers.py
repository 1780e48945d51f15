"""A worker that fails says why, once and without a traceback."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sgl_entropy.base.disk import naming_full_disk
from sgl_entropy.train.samples import shards
from sgl_entropy.train.samples.shards import Sample, flush_shard
from sgl_entropy.train.samples.store import Store, StoreMeta, write_meta
from sgl_entropy.train.samples.workers import run_processes


@dataclass(frozen=True)
class Plan:
    number: int
    store: Path


def sample(prompt_id: int) -> Sample:
    rows = torch.zeros(3, 32)
    ids = torch.zeros(4, dtype=torch.long)
    return Sample(prompt_id, 2, ids, rows, rows, torch.zeros(3), ids[:3])


def fill(plan: Plan) -> None:
    """One shard; the next ones meet a full disk, as safetensors words it."""
    flush_shard(plan.store, plan.number, [sample(plan.number)], 1, 0.0)

    def full(tensors: object, path: Path) -> None:
        del tensors, path
        raise OSError(errno.ENOSPC, "No space left on device")

    shards.save_file = full
    if plan.number:
        flush_shard(plan.store, plan.number, [sample(10 + plan.number)], 1, 0.0)


def die(plan: Plan) -> None:
    del plan
    os._exit(9)


@pytest.mark.slow
def test_a_full_disk_is_said_once_and_what_is_finished_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_meta(tmp_path, StoreMeta((1,), 32))
    plans = [Plan(number, tmp_path) for number in range(2)]
    with pytest.raises(RuntimeError) as error:
        run_processes(fill, plans, tmp_path, 0, 100, lambda line: None)
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"the disk is full: {tmp_path}/w1-")
    assert "what was finished before is kept: make room there" in lines[0]
    assert "Traceback" not in capfd.readouterr().err
    assert {entry.prompt_id for entry in Store(tmp_path, whole=True).entries} == {0, 1}


def test_a_worker_that_is_killed_is_named_by_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit codes \[9\]; run it again"):
        run_processes(die, [Plan(0, tmp_path)], tmp_path, 0, 100, lambda line: None)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_python_does_not_name_a_full_disk_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=rf"the disk is full: {log} could not be written"),
        naming_full_disk(log),
        log.open("a") as file,
    ):
        file.write("x\n")
    with pytest.raises(FileNotFoundError), naming_full_disk(log):
        (tmp_path / "none" / "log.jsonl").open("a")
