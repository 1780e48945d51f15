"""Fits side by side, each in a process of its own, that end together and keep their steps."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from sgl_entropy.train.compare.file import FitJob


def fit_side_by_side(
    fit: Callable[[FitJob], None],
    todo: Sequence[FitJob],
    workers: int,
    report: Callable[[str], None],
) -> None:
    """``fit`` all jobs, ``workers`` at once. When one does not end well, or a signal comes, the
    others are asked to end too, which they do after the step at hand.

    Raises:
        RuntimeError: a job failed or was killed; names it.
    """
    context = multiprocessing.get_context("spawn")
    left, done = list(todo), 0
    running: list[tuple[FitJob, SpawnProcess]] = []
    try:
        while left or running:
            while left and len(running) < workers:
                job = left.pop(0)
                process = context.Process(target=_fit, args=(fit, job), daemon=True)
                process.start()
                running.append((job, process))
            wait([process.sentinel for _, process in running])
            for job, process in [one for one in running if not one[1].is_alive()]:
                running.remove((job, process))
                if process.exitcode:
                    raise RuntimeError(_how_it_ended(job, process.exitcode))
                done += 1
                report(f"{job.name}: fitted ({done} of {len(todo)})")
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.join()


def _fit(fit: Callable[[FitJob], None], job: FitJob) -> None:
    """In the worker."""
    try:
        fit(job)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{job.name}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _how_it_ended(job: FitJob, code: int) -> str:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return (
        f"{job.name}: its process ended {how}, and the others were ended after a step; the same "
        f"command goes on from their checkpoints"
    )
