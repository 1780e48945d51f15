"""A load run without processes: its clients are threads, where no process is the point."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sgl_entropy_bench.load.run import pool, worker


class _ThreadProcess:
    """What ``pool`` asks of a process, by a thread: the worker without its signals and its GC."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        assert target is worker.main
        task, pipe = args
        # The pool closes its copy once the child has one of its own.
        own = Connection(os.dup(pipe.fileno()))
        self._thread = threading.Thread(target=self._run, args=(task, own), daemon=daemon)
        self.start, self.join = self._thread.start, self._thread.join
        self.is_alive = self._thread.is_alive

    @staticmethod
    def _run(task: worker.WorkerTask, pipe: Connection) -> None:
        with pipe:
            worker.run(task, pipe)


class _Threads:
    Process = _ThreadProcess
    Pipe = staticmethod(Pipe)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are threads of this process."""
    monkeypatch.setattr(pool, "CONTEXT", _Threads)
