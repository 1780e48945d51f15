"""What work needs at its peak, measured in a process of its own: of the GPU where it computes on
one, else resident memory of the process. (Ours.)
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

Job = TypeVar("Job")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Memory:
    """Bytes. On a CPU: anonymous memory resident in a fresh process. Mapped files (libraries,
    shards of the store) are left out: the kernel takes their pages back when it needs them. On a
    GPU: what torch allocated there.

    Attributes:
        bare: imports, and what torch loads with a first step; 0 on a GPU.
        loading_peak: the peak until the work was prepared.
        held: when it began.
        peak: while it ran.
    """

    bare: int
    loading_peak: int
    held: int
    peak: int

    @property
    def needed(self) -> int:
        """The work's peak above the bare process."""
        return self.peak - self.bare


@dataclass(frozen=True)
class Measured(Generic[Result]):
    """What the work returned, and its memory."""

    result: Result
    memory: Memory


def in_own_processes(
    prepare: Callable[[Job], Ready],
    work: Callable[[Ready], Result],
    jobs: Sequence[Job],
    device: str = "cpu",
) -> list[Measured[Result]]:
    """Run ``work(prepare(job))`` for all jobs at once, each in a fresh process of one thread.

    The functions, the jobs and the results must be picklable. Linux alone on a CPU: peaks are the
    kernel's (VmHWM), which is asked to start anew before ``work``.

    Args:
        device: where the work computes; memory is measured there.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(jobs), mp_context=context) as pool:
        waiting = [pool.submit(_measured, prepare, work, job, device) for job in jobs]
        return [one.result() for one in waiting]


def _measured(
    prepare: Callable[[Job], Ready], work: Callable[[Ready], Result], job: Job, device: str
) -> Measured[Result]:
    torch.set_num_threads(1)
    if device != "cpu":
        ready = prepare(job)
        held, loading_peak = (
            torch.cuda.memory_allocated(device),
            torch.cuda.max_memory_allocated(device),
        )
        torch.cuda.reset_peak_memory_stats(device)
        result = work(ready)
        peak = torch.cuda.max_memory_allocated(device)
        return Measured(result, Memory(0, loading_peak, held, peak))
    _first_step()
    bare = _status("RssAnon")
    ready = prepare(job)
    loading_peak, held = _peak(), _status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    result = work(ready)
    return Measured(result, Memory(bare, loading_peak, held, _peak()))


def _first_step() -> None:
    """What torch loads with the first step of any training is not the work's."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.softmax(model(torch.ones(2, 8)), dim=-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _peak() -> int:
    # The files mapped so far stay mapped: they were a part of the peak.
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
