"""Runs generated programs apart, within limits, one subprocess each.

What holds where Linux gives namespaces (5.12 or newer; root, or user namespaces allowed): no
network at all, no sight of other processes, every file read-only but a small folder in memory,
homes and sockets of services out of sight, a user without rights, an empty environment, and
limits of time, memory, file size and processes. What does not hold anywhere: it is no virtual
machine; a fault of the kernel is a way out, and a program that searches its interpreter can forge
the verdict. Without namespaces only the limits hold, and a guard against accidents (``runner``).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JAIL = Path(__file__).with_name("jail.py")
RUNNER = Path(__file__).with_name("runner.py")
_MIB = 2**20
_PATIENCE_S = 15.0


class SandboxError(RuntimeError):
    """Programs cannot be run here at all; says why."""


@dataclass(frozen=True)
class Limits:
    """What one program may take.

    Attributes:
        cpu_s: processor time of a process, whole seconds; all together may take ``wall_s`` seconds.
        memory_bytes: address space of a process.
        processes: of the program, threads among them.
        file_bytes, disk_bytes: of one file; of all files together (with namespaces).
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
class Verdict:
    """``status``: passed, failed, timeout, setup (the program was not run). ``error``: why."""

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
        namespaces: False = limits and a guard alone; see ``open_sandbox``.
        python: the interpreter that programs get, its standard library alone.
        weakness: why there are no namespaces; empty = there are.
    """

    limits: Limits = Limits()
    namespaces: bool = True
    python: Path = Path(sys.executable)
    prefix: Path = Path(sys.base_prefix)
    weakness: str = ""
    # More programs at once than cores would only time each other out.
    _turns: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(os.cpu_count() or 1), repr=False, compare=False
    )

    def run(self, program: str) -> Verdict:
        """Run a program to its end; "passed" only if it came there by itself.

        Raises:
            SandboxError: it could not be started.
        """
        with self._turns, contextlib.ExitStack() as stack:
            work = ""
            if not self.namespaces:
                work = tempfile.mkdtemp(prefix="sgl-entropy-code-")
                stack.callback(shutil.rmtree, work, ignore_errors=True)
                os.chmod(work, 0o777)
            verdict = self._ask(self._request(program, work))
        if verdict.status == "setup":
            raise SandboxError(f"generated code cannot be run here: {verdict.error}")
        return verdict

    @property
    def isolation(self) -> str:
        """For captions."""
        if self.namespaces:
            return "namespaces: no network, read-only files, resource limits"
        return f"resource limits and a guard against accidents only ({self.weakness})"

    def _request(self, program: str, work: str) -> bytes:
        python, prefix = self.python.resolve(), self.prefix.resolve()
        if not python.is_relative_to(prefix):
            raise SandboxError(f"{python} does not lie in its own prefix {prefix}")
        held: dict[str, Any] = {
            "program": program,
            "runner": RUNNER.read_text(encoding="utf-8"),
            "namespaces": self.namespaces,
            "prefix": str(prefix),
            "python": str(python.relative_to(prefix)),
            "work": work,
            "home": os.path.realpath(os.path.expanduser("~")),
            "user": 60000 + threading.get_native_id() % 5000,
            **vars(self.limits),
        }
        return json.dumps(held).encode() + b"\n"

    def _ask(self, request: bytes) -> Verdict:
        process = subprocess.Popen(
            [str(self.python), "-I", "-S", "-B", str(JAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        reply = b""
        try:
            # Open until the reply is there: its end would end the program.
            process.stdin.write(request)
            process.stdin.flush()
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            if poll.poll(1000 * (self.limits.wall_s + _PATIENCE_S)):
                reply = process.stdout.readline()
        except BrokenPipeError:
            pass
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        try:
            held = json.loads(reply)
            return Verdict(str(held["status"]), str(held["error"]))
        except (ValueError, KeyError, TypeError):
            return Verdict("setup", "the process that runs it ended without a word")


def open_sandbox(limits: Limits) -> Sandbox:
    """A sandbox that works here: with namespaces where they can be had, else without.

    Raises:
        SandboxError: neither works (as root with an interpreter that no other user can read).
    """
    sandbox = Sandbox(limits)
    try:
        _probe(sandbox)
    except SandboxError as error:
        weak = Sandbox(limits, namespaces=False, weakness=str(error).rpartition("here: ")[2])
        _probe(weak)
        return weak
    return sandbox


def _probe(sandbox: Sandbox) -> None:
    found = sandbox.run("import math, collections, re\n")
    if not found.passed:
        raise SandboxError(f"generated code cannot be run here: {found.shown()}")
