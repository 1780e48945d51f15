"""Several processes learn what one learns: real torchrun, gloo, on the tiny target."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.train.machine.processes import ProcessGroup, join_group
from sgl_entropy.train.samples.store import Store
from tests.train.conftest import tiny_prompts

# Batches of one or two sequences, so that a process often has none.
SETTINGS = [
    "drafter.edsd_layers=[1, 2]",
    "drafter.draft_vocab_size=96",
    "fit.epochs=3",
    "fit.steps=[1, 2]",
    "fit.rows=24",
    "fit.validation_every=5",
    "fit.dtype=float32",
    "fit.mask_gamma=20",
]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def work_folder(folder: Path, store: Store) -> Path:
    folder.mkdir()
    shutil.copytree(store.folder, folder / "store")
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    return folder


def fit_command(
    work: Path, target: Path, launcher: Sequence[str] = (), more: Sequence[str] = ()
) -> list[str]:
    command = [sys.executable, *launcher, "-m", "sgl_entropy", "train", "fit"]
    command += ["--target", str(target), "--work", str(work)]
    return command + [part for one in (*SETTINGS, *more) for part in ("--set", one)]


def fit_here(work: Path, target: Path, more: Sequence[str] = ()) -> None:
    """The command in this process, which need not be started for it."""
    words = fit_command(work, target, (), more)
    assert main(words[words.index("train") :]) == 0


def validations(work: Path) -> list[dict[str, object]]:
    lines = (work / "edsd" / "fit.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "validation" in row]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("fit.reached_only=true",)], ids=["all", "reached"])
def test_two_processes_learn_what_one_learns(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """The same curve, costs and weights, up to the order of float32 sums. (That one goes on from
    the middle of two: ``test_interrupts``.)"""
    one, two = (work_folder(tmp_path / name, tiny_store) for name in ("one", "two"))
    fit_here(one, tiny_folder, more)
    command = fit_command(two, tiny_folder, TORCHRUN, more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    together = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert together.returncode == 0, together.stderr

    curves = [validations(work) for work in (one, two)]
    assert [row["epoch"] for row in curves[1]] == [1, 2, 3], "one process writes the log"
    for left, right in zip(*curves, strict=True):
        assert left["layer_rows"] == right["layer_rows"]
        assert left["head_rows"] == right["head_rows"]
        for a, b in zip(left["validation"], right["validation"], strict=True):  # type: ignore[call-overload]
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    held = [torch.load(work / "edsd" / "checkpoint.pt") for work in (one, two)]
    assert held[0]["step"] == held[1]["step"] > 20
    for name, weight in held[0]["drafter"].items():
        torch.testing.assert_close(held[1]["drafter"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_shares_are_the_whole_batch_once() -> None:
    batch = list(range(7))
    shares = [ProcessGroup(rank, 3).share(batch) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == batch
    assert list(ProcessGroup(2, 3).share([5, 6])) == []


def test_half_a_torchrun_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RANK, LOCAL_RANK.* not: start with torchrun"):
        join_group({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"})
