"""One line of progress on stderr, with an estimate of the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO


def duration(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


class StatusLine:
    """Draws the line: overwritten in place on a terminal, a line now and then elsewhere.

    Args:
        live_every_s: on a terminal, seconds between two updates.
        log_every_s: elsewhere, so that a log stays short.
    """

    def __init__(
        self, stream: TextIO | None = None, live_every_s: float = 0.0, log_every_s: float = 5.0
    ) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._every_s = live_every_s if self.live else log_every_s
        self._last = float("-inf")

    def due(self) -> bool:
        """Whether it is time for the next update; if so, it counts as made."""
        now = time.monotonic()
        if now - self._last < self._every_s:
            return False
        self._last = now
        return True

    def show(self, line: str) -> None:
        """Draw ``line`` in place of the last one."""
        self._write(f"\r\033[K{line}" if self.live else line + "\n")

    def keep(self, line: str) -> None:
        """Write a line that stays."""
        self._last = time.monotonic()
        self._write(f"\r\033[K{line}\n" if self.live else line + "\n")

    def close(self) -> None:
        """Leave the line of the terminal clean."""
        if self.live:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class Progress:
    """Tells what happens now and how long all of it will still take.

    Args:
        expected_s: a first guess of the whole duration, replaced by measurement as ``done`` (a
            fraction) grows; None = there is no guess.
        every_s: where stderr is no terminal, seconds between two lines.
    """

    def __init__(
        self, expected_s: float | None, stream: TextIO | None = None, every_s: float = 5.0
    ) -> None:
        self.line = StatusLine(stream, log_every_s=every_s)
        self.expected_s = expected_s
        self.begun = time.monotonic()

    def left_s(self, done: float) -> float:
        """Seconds left when a fraction ``done`` of the work is finished; infinite = unknown."""
        elapsed = time.monotonic() - self.begun
        pace = elapsed / done if done > 0 else math.inf
        if self.expected_s is None:
            return pace - elapsed
        # At the very start the guess counts; from a quarter on, the pace so far alone.
        trust = min(1.0, 4 * done)
        total = (1 - trust) * self.expected_s + (trust * pace if trust else 0.0)
        return max(0.0, total - elapsed)

    def update(self, text: str, done: float) -> None:
        """Something moved; shown at once on a terminal, now and then elsewhere."""
        if self.line.due():
            self.line.show(self._text(text, done))

    def step(self, text: str, done: float) -> None:
        """A new step begins; always shown."""
        self.line.keep(self._text(text, done))

    def close(self) -> None:
        """Leave the line of the terminal clean."""
        self.line.close()

    def _text(self, text: str, done: float) -> str:
        elapsed = time.monotonic() - self.begun
        left = self.left_s(done)
        known = f" (about {duration(left)} left)" if left < math.inf else ""
        return f"[{duration(elapsed)}] {text}{known}"


def counter(what: str) -> Callable[[int, int], None]:
    """Tells "12 of 300 ``what``" and the time left: call it with how many are done and of all."""
    progress = Progress(expected_s=0.0)

    def told(done: int, total: int) -> None:
        tell = progress.step if done >= total else progress.update
        tell(f"{done:,} of {total:,} {what}", done / max(1, total))

    return told
