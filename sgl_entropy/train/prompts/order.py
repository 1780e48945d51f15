"""Prompts, and the order in which they are answered: neighbours have similar lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# How many prompts of a worker are sorted by length together.
LENGTH_BLOCK = 640
# The most (padded) prompt rows of one prefill.
PREFILL_ROWS = 2048


@dataclass(frozen=True)
class Prompt:
    """A prompt: its number in the prompt file, and its tokens."""

    prompt_id: int
    tokens: tuple[int, ...]


def in_length_blocks(prompts: Sequence[Prompt], block: int) -> list[Prompt]:
    """Sort by length within blocks of the given order, alternately up and down, so that neighbours
    have similar lengths. Any prefix of the result is close to a fair sample of the prompts.
    """
    out: list[Prompt] = []
    for number, start in enumerate(range(0, len(prompts), block)):
        part = prompts[start : start + block]
        out += sorted(part, key=lambda p: (len(p.tokens), p.prompt_id), reverse=number % 2 == 1)
    return out


def worker_queue(prompts: Sequence[Prompt], number: int, workers: int) -> list[Prompt]:
    """The prompts of worker ``number`` (from 0), in the order in which it answers them."""
    return in_length_blocks(prompts[number::workers], LENGTH_BLOCK)


def next_prefill(queue: list[Prompt], most: int, rows: int = PREFILL_ROWS) -> list[Prompt]:
    """Take the next prefill's prompts from the front of ``queue``: at most ``most``, and at most
    ``rows`` padded rows (unless a single prompt is longer)."""
    part: list[Prompt] = []
    longest = 0
    while queue and len(part) < most:
        longest = max(longest, len(queue[0].tokens))
        if part and longest * (len(part) + 1) > rows:
            break
        part.append(queue.pop(0))
    return part


def to_begin(wanted: int, most: int, tokens: int, ended: int, written: Sequence[int]) -> int:
    """How many more answers to begin. Every answer that is begun is finished, because otherwise the
    long ones would be missing; so answers under way count with their expected length.

    Args:
        wanted: answer tokens in all, at the end.
        most: of one answer.
        tokens, ended: of the answers that have ended.
        written: so far, of each one under way.
    """
    # Mean length of an answer, and also of the rest of one under way, if every token is equally
    # likely to end it.
    mean = min(most, (tokens + sum(written)) / ended) if ended else most
    expected = tokens + sum(min(most, one + mean) for one in written)
    return max(0, math.ceil((wanted - expected) / mean))
