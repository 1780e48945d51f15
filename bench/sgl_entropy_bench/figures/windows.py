"""Decoding speed of one request, or at an exact batch size, read from streamed arrivals.

Requests that are sent together neither begin nor end decoding together. Counted is only the
window in which all of them decode: from the last one's first token to the first one's end. No
prompt is processed in it, and the batch has its full size throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_entropy_bench.http.client import Generation


@dataclass(frozen=True)
class TimedAnswer:
    """One request alone: ``emitted`` tokens in ``cycles``, ``decoded`` ones in ``seconds``.

    ``decoded`` counts the tokens after the first event, and ``seconds`` begin with it. ``checks``
    and ``fires`` are EASD's.
    """

    output_ids: tuple[int, ...]
    cycles: int
    emitted: int
    checks: int
    fires: int
    decoded: int
    seconds: float

    @classmethod
    def of(cls, done: Generation) -> TimedAnswer:
        """From a finished request."""
        first, last = done.arrivals[0], done.arrivals[-1]
        return cls(
            done.output_ids,
            done.cycles,
            done.emitted,
            done.easd_checks,
            done.easd_fires,
            done.completion_tokens - first.tokens,
            last.time_s - first.time_s,
        )

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.output_ids)


@dataclass(frozen=True)
class DecodeWindow:
    """Sums over the requests of one batch: seconds, tokens and steps, each within the window.

    A step is one draft-verify cycle, or one decode step without speculation. ``batch`` requests
    ran side by side, so the batch made ``tokens / seconds * batch`` tokens a second.
    """

    batch: int
    seconds: float
    tokens: int
    steps: float

    def __add__(self, other: DecodeWindow) -> DecodeWindow:
        if self.batch != other.batch:
            raise ValueError(f"windows of batch sizes {self.batch} and {other.batch}")
        return DecodeWindow(
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


def full_batch_window(batch: Sequence[Generation]) -> DecodeWindow | None:
    """The window of requests that were sent together, or None where they hardly overlap.

    None: some request has fewer than two arrivals in the window.
    """
    begin = max(done.arrivals[0].time_s for done in batch)
    end = min(done.arrivals[-1].time_s for done in batch)
    seconds, tokens, steps = 0.0, 0, 0.0
    for done in batch:
        inside = [k for k, arrival in enumerate(done.arrivals) if begin <= arrival.time_s <= end]
        if len(inside) < 2:
            return None
        first, last = inside[0], inside[-1]
        seconds += done.arrivals[last].time_s - done.arrivals[first].time_s
        new = done.arrivals[last].tokens - done.arrivals[first].tokens
        tokens += new
        steps += steps_between(done, first, last, new)
    return DecodeWindow(len(batch), seconds, tokens, steps)


def steps_between(done: Generation, first: int, last: int, tokens: int) -> float:
    """Steps from one arrival to another, between which ``tokens`` came.

    Without speculation a step is a token. With it, each arrival after the first token's is one
    cycle, unless some came merged: then the request's cycles, which the server counts, are shared
    out by tokens.
    """
    if not done.cycles:
        return float(tokens)
    if done.cycles == len(done.arrivals) - 1:
        return float(last - first)
    return done.cycles * tokens / (done.completion_tokens - 1)
