"""Faults at the N-th filesystem operation: a kill, one failure, or failures from there on.

Python's audit hooks see almost every operation that changes a filesystem, whoever does it, and
may fail it; writes are wrapped. fsync is counted but left out: a
kill does not depend on it, and the loops are many times faster.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sgl_entropy.patching import journal

_CHANGES = {
    "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod",
    "os.chown", "os.utime", "os.truncate",
}  # fmt: skip
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_active: Callable[[], None] | None = None
_hooked = False


class Fault:
    """Counts operations; at number ``at`` (1-based) the fault happens.

    ``kind``: ``kill`` (SIGKILL to this process), ``once`` (one ENOSPC), ``on`` (ENOSPC for ever).
    ``wait``: count only from the first call of ``journal.commit`` on.
    """

    def __init__(self, kind: str, at: int, wait: bool = False) -> None:
        self.kind, self.at, self.wait, self.count = kind, at, wait, 0

    @property
    def struck(self) -> bool:
        return self.count >= self.at

    def step(self) -> None:
        if self.wait:
            return
        self.count += 1
        if self.count == self.at or (self.kind == "on" and self.struck):
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "injected")


def _hook(event: str, args: tuple) -> None:
    if _active is None:
        return
    if event in _CHANGES or (event == "open" and isinstance(args[2], int) and _writes(args)):
        _active()


def _writes(args: tuple) -> bool:
    return bool(args[2] & _WRITE_FLAGS) and str(args[0]) != os.devnull


@contextmanager
def injected(fault: Fault, monkeypatch) -> Iterator[Fault]:
    global _active, _hooked
    if not _hooked:  # a hook cannot be taken out again
        sys.addaudithook(_hook)
        _hooked = True
    write, commit = os.write, journal.commit

    def torn_write(descriptor: int, data: bytes) -> int:
        if fault.count + 1 == fault.at and not fault.wait:
            write(descriptor, data[: len(data) // 2])
        fault.step()
        return write(descriptor, data)

    def noticed_commit(*args) -> None:
        fault.wait = False
        commit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", torn_write)
        patch.setattr(os, "fsync", lambda _: fault.step())
        patch.setattr(journal, "commit", noticed_commit)
        _active = fault.step
        try:
            yield fault
        finally:
            _active = None


def killed_at(number: int, act: Callable[[], object], monkeypatch, wait: bool = False) -> bool:
    """Run ``act`` in a child killed at operation ``number``; False if it ended before that."""
    child = os.fork()
    if child == 0:
        try:
            with injected(Fault("kill", number, wait), monkeypatch):
                act()
            os._exit(0)
        finally:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed without being killed"
    return False
