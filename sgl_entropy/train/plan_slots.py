"""What the slots of a generating worker go through: its schedule, without the target. (Ours.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgl_entropy.train.generate import REFILLED
from sgl_entropy.train.queues import LENGTH_BLOCK, Prompt, next_prefill, worker_queue
from sgl_entropy.train.store import Entry

# Sequences of a worker that are followed at most; the others are like them.
_FOLLOWED = 4 * LENGTH_BLOCK


@dataclass(frozen=True)
class Schedule:
    """What a worker does.

    Attributes:
        slots: that it fills.
        prefills: the prompts of each, by length alone: their tokens are noughts.
        steps: of each decode step the tokens of the longest slot, over which all slots attend.
        answer_tokens: of the answers that it finishes by all that.
    """

    slots: int
    prefills: list[list[Prompt]]
    steps: list[int]
    answer_tokens: int


def worker_schedule(entries: Sequence[Entry], number: int, workers: int, slots: int) -> Schedule:
    """What ``generate.run_worker`` does as worker ``number`` (from 0) until the answers of its part
    of ``entries`` are finished, or as many tokens. What is under way by then is lost: sequences
    like its last ones."""
    entries = entries[: workers * _FOLLOWED]
    answers = {entry.prompt_id: entry.length - entry.prompt_length for entry in entries}
    prompts = [Prompt(entry.prompt_id, (0,) * entry.prompt_length) for entry in entries]
    queue = worker_queue(prompts, number, workers)
    wanted = sum(answers[prompt.prompt_id] for prompt in queue)
    slots = min(slots, len(queue))
    queue += queue[-slots:]
    held: list[Prompt | None] = [None] * slots
    written = [0] * slots
    prefills: list[list[Prompt]] = []
    steps: list[int] = []
    finished = 0
    while True:
        for slot, prompt in enumerate(held):
            if prompt is not None and written[slot] >= answers[prompt.prompt_id]:
                finished += answers[prompt.prompt_id]
                held[slot] = None
        if finished >= wanted:
            return Schedule(slots, prefills, steps, finished)
        idle = [slot for slot, prompt in enumerate(held) if prompt is None]
        if len(idle) >= min(REFILLED, slots):
            while queue and idle:
                prefills.append(next_prefill(queue, len(idle)))
                for prompt in prefills[-1]:
                    slot = idle.pop(0)
                    held[slot], written[slot] = prompt, 1
        busy = [(slot, prompt) for slot, prompt in enumerate(held) if prompt is not None]
        steps.append(max(len(prompt.tokens) + written[slot] for slot, prompt in busy))
        for slot, _ in busy:
            written[slot] += 1
