"""What the slots of a generating worker go through: its schedule, without the target. (Ours.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgl_entropy.train.prompts.order import LENGTH_BLOCK, Prompt, next_prefill, worker_queue
from sgl_entropy.train.samples.generate import REFILLED, shrunk_from
from sgl_entropy.train.samples.store import Entry

# Sequences of a worker that are followed at most; the others are like them.
_FOLLOWED = 4 * LENGTH_BLOCK


@dataclass(frozen=True)
class Schedule:
    """What a worker does.

    Attributes:
        slots: that it fills.
        prefills: the prompts of each, by length alone: their tokens are noughts.
        steps: of each decode step the tokens of the longest slot, over which all slots attend.
        held: of each decode step the slots that compute.
        answer_tokens: of the answers that it finishes by all that.
    """

    slots: int
    prefills: list[list[Prompt]]
    steps: list[int]
    held: list[int]
    answer_tokens: int


def worker_schedule(entries: Sequence[Entry], number: int, workers: int, slots: int) -> Schedule:
    """What ``generate.run_worker`` does as worker ``number`` (from 0) until the answers of its part
    of ``entries`` are finished. Where they are too many to follow, until as many tokens as the
    first of them hold are finished, with all slots kept full: the others are like them."""
    steady = len(entries) > workers * _FOLLOWED
    entries = entries[: workers * _FOLLOWED]
    answers = {entry.prompt_id: entry.length - entry.prompt_length for entry in entries}
    prompts = [Prompt(entry.prompt_id, (0,) * entry.prompt_length) for entry in entries]
    queue = worker_queue(prompts, number, workers)
    wanted = sum(answers[prompt.prompt_id] for prompt in queue)
    slots = min(slots, len(queue))
    if steady:
        queue += queue[-slots:]
    busy: list[Prompt | None] = [None] * slots
    written = [0] * slots
    out = Schedule(slots, [], [], [], wanted)
    finished = 0
    while True:
        for slot, prompt in enumerate(busy):
            if prompt is not None and written[slot] >= answers[prompt.prompt_id]:
                finished += answers[prompt.prompt_id]
                busy[slot] = None
        if finished >= wanted:
            return replace(out, answer_tokens=finished)
        idle = [slot for slot, prompt in enumerate(busy) if prompt is None]
        if len(idle) >= min(REFILLED, len(busy)):
            while queue and idle:
                out.prefills.append(next_prefill(queue, len(idle)))
                for prompt in out.prefills[-1]:
                    slot = idle.pop(0)
                    busy[slot], written[slot] = prompt, 1
        if not queue and len(idle) >= shrunk_from(len(busy)):
            left = [slot for slot, prompt in enumerate(busy) if prompt is not None]
            busy, written = [busy[slot] for slot in left], [written[slot] for slot in left]
        lengths = [
            len(prompt.tokens) + done
            for prompt, done in zip(busy, written, strict=True)
            if prompt is not None
        ]
        out.steps.append(max(lengths))
        out.held.append(len(busy))
        written = [done + 1 for done in written]
