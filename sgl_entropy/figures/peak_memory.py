"""What work in a process of its own needs at most: resident memory before it and at its peak."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Job = TypeVar("Job")
Ready = TypeVar("Ready")


@dataclass(frozen=True)
class Memory:
    """Anonymous memory resident in a fresh process, bytes. Mapped files (libraries, shards of the
    store) are left out: the kernel takes their pages back when it needs them.

    Attributes:
        bare: imports, and what torch loads with a first step.
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


def memory_of(prepare: Callable[[Job], Ready], work: Callable[[Ready], None], job: Job) -> Memory:
    """Run ``work(prepare(job))`` in a fresh process of one thread; all three must be picklable.

    Linux alone: peaks are the kernel's (VmHWM), which is asked to start anew before ``work``.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, prepare, work, job).result()


def _measured(prepare: Callable[[Job], Ready], work: Callable[[Ready], None], job: Job) -> Memory:
    import torch

    torch.set_num_threads(1)
    # What torch loads with the first step of any training is not the work's.
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.softmax(model(torch.ones(2, 8)), dim=-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    bare = _status("RssAnon")
    ready = prepare(job)
    loading_peak, held = _peak(), _status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    work(ready)
    return Memory(bare, loading_peak, held, _peak())


def _peak() -> int:
    # The files mapped so far stay mapped: they were a part of the peak.
    return _status("VmHWM") - _status("RssFile")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
