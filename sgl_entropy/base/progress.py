"""One line of progress on stderr, with an estimate of the time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class Progress:
    """Says what happens now and how long all of it will still take.

    On a terminal one line is overwritten; elsewhere a line is written at most every ``every_s``
    seconds, so that a log stays short. ``expected_s`` is the first guess of the whole duration,
    replaced by measurement as ``done`` (a fraction) grows.
    """

    def __init__(
        self, expected_s: float, stream: TextIO | None = None, every_s: float = 5.0
    ) -> None:
        self.stream = stream or sys.stderr
        self.every_s = every_s
        self.expected_s = expected_s
        self.begun = time.monotonic()
        self._live = self.stream.isatty()
        self._last = float("-inf")

    def left_s(self, done: float) -> float:
        """Seconds left when a fraction ``done`` of the work is finished."""
        elapsed = time.monotonic() - self.begun
        # At the very start the guess counts; from a quarter on, the pace so far alone.
        pace = elapsed / done if done > 0 else self.expected_s
        trust = min(1.0, 4 * done)
        total = (1 - trust) * self.expected_s + trust * pace
        return max(0.0, total - elapsed)

    def update(self, text: str, done: float) -> None:
        """Something moved; shown at once on a terminal, now and then elsewhere."""
        now = time.monotonic()
        if not self._live and now - self._last < self.every_s:
            return
        self._last = now
        self._write(self._line(text, done), overwrite=self._live)

    def step(self, text: str, done: float) -> None:
        """A new step begins; always shown."""
        self._last = time.monotonic()
        self._write(self._line(text, done), overwrite=False)

    def _line(self, text: str, done: float) -> str:
        elapsed = time.monotonic() - self.begun
        return f"[{duration(elapsed)}] {text} (about {duration(self.left_s(done))} left)"

    def _write(self, line: str, overwrite: bool) -> None:
        if self._live:
            self.stream.write("\r\033[K" + line + ("" if overwrite else "\n"))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the terminal's line clean."""
        if self._live:
            self.stream.write("\r\033[K")
            self.stream.flush()
