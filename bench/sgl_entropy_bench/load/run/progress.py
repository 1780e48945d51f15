"""The progress of a load run: live rate, requests in flight, errors, latency, time left."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from sgl_entropy.base.progress import StatusLine, duration
from sgl_entropy_bench.load.run.worker import Tally


class LoadProgress:
    """Shows what ``pool.drive`` reports, a few times a second on a terminal.

    Args:
        total: measured requests that will end; 0 = unknown.
        every_s: where stderr is no terminal, seconds between two lines.
    """

    def __init__(
        self, what: str, total: int = 0, stream: TextIO | None = None, every_s: float = 10.0
    ) -> None:
        self.what, self.total = what, total
        self._line = StatusLine(stream, live_every_s=0.2, log_every_s=every_s)
        self._line.due()  # a short run tells nothing

    def report(self, tallies: Sequence[Tally], elapsed: float) -> None:
        """Takes what ``pool.drive`` reports."""
        if elapsed <= 0 or not self._line.due():
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
        self._line.show(", ".join(parts))

    def waiting(self, elapsed: float) -> None:
        """A server starts."""
        if self._line.due():
            self._line.show(f"{self.what}, {elapsed:.0f} s")

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._line.keep(line)

    def close(self) -> None:
        """Leave the line of the terminal clean."""
        self._line.close()

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
