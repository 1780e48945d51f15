"""Runs several client processes as one client: they start and end together."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from sgl_entropy_bench.load.run import worker
from sgl_entropy_bench.load.run.worker import Tally, WorkerTask

# Fresh processes, which inherit no threads and no locks.
CONTEXT = multiprocessing.get_context("spawn")
_LEAD_S = 0.3
_READY_S = 60.0
_END_S = 20.0


class ClientError(RuntimeError):
    """A client process failed, for example on a full disk. What was written stays."""


@dataclass(frozen=True)
class WorkerOutcome:
    """How a run ended.

    Attributes:
        tallies: one for each process.
        interrupted: what ended it before all was measured: Ctrl-C, SIGTERM.
        started: the time of the run's start, seconds since 1970.
    """

    tallies: tuple[Tally, ...]
    interrupted: KeyboardInterrupt | None
    started: float


Report = Callable[[Sequence[Tally], float], None]


def drive(
    tasks: Sequence[WorkerTask], measured: int, report: Report, start_at: float | None = None
) -> WorkerOutcome:
    """Run ``tasks``, one process each, until ``measured`` requests of the measured part ended.

    Args:
        start_at: when to begin, seconds since 1970; None or a past time = at once.
        report: called with the tallies and the seconds since the start, a few times a second.

    Raises:
        ClientError: a process failed.
    """
    processes: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for task in tasks:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=worker.main, args=(task, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        for pipe in pipes:
            _expect_ready(pipe)
        lead = _LEAD_S if start_at is None else max(_LEAD_S, start_at - time.time())
        began = time.monotonic() + lead
        started = time.time() + lead
        for pipe in pipes:
            pipe.send(("start", began))
        return _watch(pipes, measured, report, began, started)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(timeout=_END_S)
            if process.is_alive():
                process.kill()
                process.join()


def _expect_ready(pipe: Connection) -> None:
    try:
        if not pipe.poll(_READY_S):
            raise ClientError(f"a client process is not ready after {_READY_S:g} s")
        said = pipe.recv()
    except EOFError:
        raise ClientError("a client process ended before the start") from None
    if said[0] != "ready":
        raise ClientError(said[1])


def _watch(
    pipes: Sequence[Connection], measured: int, report: Report, began: float, started: float
) -> WorkerOutcome:
    tallies = {pipe: Tally() for pipe in pipes}
    running = list(pipes)
    failures: list[str] = []
    stopping, interrupted = False, None
    while running:
        try:
            for pipe in wait(running, timeout=0.5):
                assert isinstance(pipe, Connection)
                said = _heard(pipe)
                if said[0] in ("tally", "done"):
                    tallies[pipe] = said[1]
                if said[0] != "tally":
                    running.remove(pipe)
                if said[0] == "failed":
                    failures.append(said[1])
            if not stopping:
                report(list(tallies.values()), time.monotonic() - began)
            done = sum(tally.measured for tally in tallies.values())
        except KeyboardInterrupt as error:
            interrupted, done = error, measured
        if not stopping and (done >= measured or failures):
            stopping = True
            for pipe in running:
                _tell(pipe)
    if failures and interrupted is None:
        raise ClientError("; ".join(dict.fromkeys(failures)))
    return WorkerOutcome(tuple(tallies.values()), interrupted, started)


def _heard(pipe: Connection) -> tuple[str, Any]:
    try:
        said: tuple[str, Any] = pipe.recv()
    except (EOFError, ConnectionError):
        return "failed", "a client process ended in the middle of the run"
    return said


def _tell(pipe: Connection) -> None:
    with contextlib.suppress(ConnectionError):
        pipe.send(("stop",))
