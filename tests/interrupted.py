"""A command in a terminal of its own, in which someone presses Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def interrupt(words: list[str], log: Path, ready: Callable[[str], bool]) -> tuple[int, str]:
    """Run ``sgl-entropy WORDS`` until ``ready`` says so of what it wrote, then send SIGINT to all
    of its processes, as a terminal does.

    Args:
        log: where stdout and stderr go.

    Returns:
        The exit code and what was written.
    """
    with log.open("wb") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "sgl_entropy", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + 180
        while not ready(log.read_text()):
            assert command.poll() is None, f"it ended by itself:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"waited too long:\n{log.read_text()}"
            time.sleep(0.05)
        os.killpg(command.pid, signal.SIGINT)
        code = command.wait(timeout=60)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
    return code, log.read_text()
