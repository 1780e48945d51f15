"""What a run looks like while it goes: one line that is overwritten, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from sgl_entropy.base.progress import duration
from sgl_entropy_bench.load.run.worker import Tally


class LoadProgress:
    """Live rate, requests in flight, errors, mean latency so far and time left.

    Args:
        total: measured requests that will end; 0 = unknown.
    """

    def __init__(
        self, what: str, total: int = 0, stream: TextIO | None = None, every_s: float = 10.0
    ) -> None:
        self.what, self.total = what, total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._every_s = 0.2 if self._live else every_s
        self._last = time.monotonic()

    def report(self, tallies: Sequence[Tally], elapsed: float) -> None:
        """Takes what ``pool.drive`` reports."""
        if not self._due() or elapsed <= 0:
            return
        sent = sum(t.sent for t in tallies)
        done = sum(t.done for t in tallies)
        errors = sum(t.errors for t in tallies)
        measured = sum(t.measured for t in tallies)
        well = done - errors
        parts = [f"{self.what}: {measured}"]
        if self.total:
            parts[0] += f"/{self.total} measured"
        parts += [
            f"{done / elapsed:.2f} requests/s",
            f"{sent - done} in flight",
            f"{errors} errors",
        ]
        if well:
            parts.append(f"mean latency {sum(t.latency_s for t in tallies) / well:.2f} s")
        if self.total and measured:
            left = (self.total - measured) / measured * elapsed
            parts.append(f"about {duration(left)} left")
        self._write(", ".join(parts))

    def waiting(self, elapsed: float) -> None:
        """A server starts."""
        if self._due():
            self._write(f"{self.what}, {elapsed:.0f} s")

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._live:
            self._stream.write("\r\033[K")
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._live:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\033[K{line}" if self._live else line + "\n")
        self._stream.flush()

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
