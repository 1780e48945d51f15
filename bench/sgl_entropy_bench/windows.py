"""Decoding speed at an exact batch size, read from streamed arrivals.

Requests that are sent together neither begin nor end decoding together. Counted is only the
window in which all of them decode: from the last one's first token to the first one's end. No
prompt is processed in it, and the batch has its full size throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_entropy_bench.client import Generation


@dataclass(frozen=True)
class Window:
    """Sums over the requests of one batch: seconds, tokens and steps, each within the window.

    A step is one draft-verify cycle, or one decode step without speculation. ``batch`` requests
    ran side by side, so the batch made ``tokens / seconds * batch`` tokens a second.
    """

    batch: int
    seconds: float
    tokens: int
    steps: int

    def __add__(self, other: Window) -> Window:
        if self.batch != other.batch:
            raise ValueError(f"windows of batch sizes {self.batch} and {other.batch}")
        return Window(
            self.batch,
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            self.steps + other.steps,
        )

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of the whole batch."""
        return self.tokens / self.seconds * self.batch

    @property
    def step_s(self) -> float:
        """Seconds a step, of all requests together."""
        return self.seconds / self.steps

    @property
    def tokens_per_step(self) -> float:
        """tau within the window: tokens a cycle; 1.0 without speculation."""
        return self.tokens / self.steps


def full_batch_window(batch: Sequence[Generation]) -> Window | None:
    """The window of requests that were sent together, or None where they hardly overlap.

    None: some request has fewer than two arrivals in the window.
    """
    begin = max(done.arrivals[0].time_s for done in batch)
    end = min(done.arrivals[-1].time_s for done in batch)
    seconds, tokens, steps = 0.0, 0, 0
    for done in batch:
        inside = [arrival for arrival in done.arrivals if begin <= arrival.time_s <= end]
        if len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        seconds += last.time_s - first.time_s
        tokens += last.tokens - first.tokens
        # Counters, not arrivals: events that wait for a busy machine arrive merged.
        if done.cycles:
            steps += last.cycles - first.cycles
        else:
            steps += last.tokens - first.tokens
    return Window(len(batch), seconds, tokens, steps)
