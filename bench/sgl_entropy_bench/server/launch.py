"""Start one server, wait until it answers, stop it with everything it started."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.server.processes import (
    allocated_bytes,
    end_session,
    memory_bytes,
    session_members,
    signal_all,
)

# (pattern in the log, likely cause and what to do); the first match is reported
CAUSES = (
    (
        r"invalid choice: '(EDSD|EAGLE3)'|unrecognized arguments: --speculative",
        "this SGLang does not know the algorithm: run `sgl-entropy patch apply`",
    ),
    (r"address already in use", "the port is taken: another server is running"),
    (
        r"No module named '(sgl_kernel|torchvision|vllm)",
        "SGLang's CUDA packages are asked for: run `sgl-entropy patch apply`",
    ),
    (r"No module named '([^']+)'", "a package is missing: run `make env`"),
    (
        r"Torch not compiled with CUDA|Found no NVIDIA driver|No CUDA GPUs",
        "the server looked for a GPU: run `sgl-entropy patch verify` and `sgl-entropy doctor`",
    ),
    (
        r"[Nn]ot enough memory|Cannot allocate memory|MemoryError|DefaultCPUAllocator",
        "memory ran out: free some, or lower --max-total-tokens",
    ),
    (r"No space left on device", "the disk is full"),
)


class StartError(RuntimeError):
    """The server did not come up; the message holds the log's last lines and the likely cause."""


def free_port() -> int:
    """A port of this machine that nobody listens on, below the range that clients are given."""
    for port in random.Random().sample(range(21000, 31000), 200):
        if port_is_free(port):
            return port
    raise StartError("200 ports between 21000 and 31000 are taken; is something listening on all?")


def port_is_free(port: int) -> bool:
    """Whether one could listen on 127.0.0.1:``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def likely_cause(log: str, status: int | None) -> str:
    """One sentence on why a server with this log and exit status did not come up."""
    for pattern, cause in CAUSES:
        if re.search(pattern, log):
            return cause
    if status in (137, 9):
        return "it was killed: most often, memory ran out"
    if status is None:
        return "it is still starting, or hangs: see the log's last lines"
    return "see the log's last lines"


class Server:
    """A server under supervision, as a context manager.

    ``log`` receives both of its output streams. Leaving the ``with`` block, or the end of this
    process in any way, ends the server and all processes that it started.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        port: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = 400.0,
    ) -> None:
        self.name = name
        self.command = command
        self.port = port
        self.log = log
        self.environment = environment
        self.ready_timeout_s = ready_timeout_s
        self.client = Client("127.0.0.1", port)
        self.startup_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, waiting: Callable[[float], None] = lambda _: None) -> Server:
        """Start and wait for health and one answer; ``waiting`` is called with seconds so far.

        Raises StartError with the likely cause when the port is taken, the process ends, or
        ``ready_timeout_s`` pass.
        """
        if not port_is_free(self.port):
            raise StartError(
                f"port {self.port} is in use; stop what listens there or choose another"
            )
        begun = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sgl_entropy_bench.server.supervise", *self.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        try:
            while not self.client.healthy():
                elapsed = time.monotonic() - begun
                status = self._process.poll()
                if status is not None:
                    raise self._failure(f"the {self.name} server ended while starting", status)
                if elapsed > self.ready_timeout_s:
                    raise self._failure(
                        f"the {self.name} server is not up in {elapsed:.0f} s", None
                    )
                waiting(elapsed)
                time.sleep(0.25)
            self.startup_s = time.monotonic() - begun
            # The first answer includes lazy imports and allocations, which must not be timed.
            self.client.generate(text="Hello, how are you?", max_new_tokens=8)
        except ServerError as error:
            failure = self._failure(f"the {self.name} server cannot answer: {error}", None)
            self.stop()
            raise failure from error
        except BaseException:
            self.stop()
            raise
        return self

    def _failure(self, what: str, status: int | None) -> StartError:
        text = self.log_text()
        tail = "\n".join(f"  | {line}" for line in text.splitlines()[-20:])
        code = "" if status is None else f" (exit status {status})"
        return StartError(f"{what}{code}: {likely_cause(text, status)}\n{tail}\nlog: {self.log}")

    def log_text(self) -> str:
        """All that the server wrote so far."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def pids(self) -> list[int]:
        """The server's processes, the supervisor among them; empty when it is stopped."""
        return [] if self._process is None else session_members(self._process.pid)

    def memory_bytes(self) -> int:
        """Memory of all its processes together, shared pages counted once."""
        return memory_bytes(self.pids())

    def allocated_bytes(self) -> int:
        """Memory that all its processes allocated themselves, files' pages left out."""
        return allocated_bytes(self.pids())

    def alive(self) -> bool:
        """Whether its main process runs."""
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """Stop the processes from running at all, as an idle scheduler still polls."""
        signal_all([pid for pid in self.pids() if pid != self._supervisor()], signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        signal_all(self.pids(), signal.SIGCONT)

    def _supervisor(self) -> int:
        return -1 if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the server and all its processes; returns when none is left.

        Raises RuntimeError if one survives SIGKILL (a process stuck in the kernel).
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        # From here on the supervisor ends the session, even if we are interrupted again.
        process.stdin.close()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if left := end_session(process.pid, grace_s=0.0):
            raise RuntimeError(f"processes {left} of the {self.name} server do not end")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: we are stopping already
            self.stop()
