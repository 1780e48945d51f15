"""Continuous batching in plain torch: a fixed number of slots, refilled as answers end.

The one decoding loop of the trainer. What becomes of a slot's rows is a ``Writer``'s business: one
chooses tokens alone (``decode``), another also keeps the features of every row
(``samples.generate``). Prompts come in blocks of similar length, since every decode step attends
over the longest slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget, TargetOutput
from sgl_entropy.train.prompts.order import PREFILL_ROWS, Prompt, next_prefill

# What is kept of a finished answer.
Kept = TypeVar("Kept", covariant=True)


class Writer(Protocol[Kept]):
    """Chooses the tokens of all slots, and makes what a finished answer is kept as.

    Attributes:
        tap_layers: the target's layers whose outputs it wants to see.
    """

    tap_layers: tuple[int, ...]

    def next_tokens(self, out: TargetOutput, slots: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """The token after each sequence's last row: int64 [batch].

        Args:
            out: of one forward over ``batch`` sequences.
            slots, starts, rows: int64 [batch]: a sequence's slot, the position of its first row in
                ``out``, and how many of its rows are real; the others are padding.
        """

    def finished(self, prompt: Prompt, slot: int, tokens: Tensor) -> Kept:
        """What is kept of an answer; ``tokens`` int64 [n] on the CPU, prompt and answer."""

    def keep(self, slots: Tensor) -> None:
        """Keep the given slots (int64 [kept]) alone, in that order."""


@dataclass(frozen=True)
class Pace:
    """When slots are looked at and filled.

    Attributes:
        look: decode steps between two looks at what has ended; each look waits for the device.
        refilled: so many slots are idle before any is filled again: small prefills waste matmuls.
        prefill_rows: the most padded prompt rows of one prefill.
    """

    look: int = 1
    refilled: int = 12
    prefill_rows: int = PREFILL_ROWS


class Slots(Generic[Kept]):
    """What each slot holds; every tensor on the target's device.

    Args:
        count: sequences decoded at once.
        longest: tokens of the longest prompt.
        max_new_tokens: longest answer.
    """

    def __init__(
        self,
        target: PlainTarget,
        count: int,
        longest: int,
        max_new_tokens: int,
        writer: Writer[Kept],
    ) -> None:
        device = target.device
        self.target, self.writer, self.max_new_tokens = target, writer, max_new_tokens
        self.cache = target.new_cache(count)
        room = (count, longest + max_new_tokens)
        self.tokens = torch.zeros(room, dtype=torch.long, device=device)
        self.lengths = torch.ones(count, dtype=torch.long, device=device)
        self.starts = torch.ones(count, dtype=torch.long, device=device)
        self.running = torch.zeros(count, dtype=torch.bool, device=device)
        self.prompts: list[Prompt | None] = [None] * count
        self._ends = torch.tensor(sorted(target.eos_ids), dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.prompts)

    def idle(self) -> list[int]:
        """The slots without a prompt."""
        return [slot for slot, prompt in enumerate(self.prompts) if prompt is None]

    def written(self) -> list[int]:
        """Answer tokens so far of each sequence under way."""
        lengths = self.lengths.tolist()
        return [
            length - len(prompt.tokens)
            for length, prompt in zip(lengths, self.prompts, strict=True)
            if prompt is not None
        ]

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> None:
        """Prefill ``prompts`` into idle ``slots``, and append each one's first answer token."""
        device = self.target.device
        longest = max(len(prompt.tokens) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.tokens)] = torch.tensor(prompt.tokens)
        lengths = torch.tensor([len(prompt.tokens) for prompt in prompts], device=device)
        ids, at, starts = ids.to(device), torch.tensor(slots, device=device), lengths * 0
        out = self.target.forward(
            ids, starts, self.cache, slots=at, tap_layers=self.writer.tap_layers
        )
        self.tokens[at, :longest] = ids
        self.lengths[at] = self.starts[at] = lengths
        self._append(at, self.writer.next_tokens(out, at, starts, lengths))
        for slot, prompt in zip(slots, prompts, strict=True):
            self.prompts[slot] = prompt

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every running slot; the others compute along, unread."""
        every = torch.arange(len(self), device=self.target.device)
        at = self.lengths - 1
        ids = self.tokens[every, at][:, None]
        out = self.target.forward(ids, at, self.cache, tap_layers=self.writer.tap_layers)
        new = self.writer.next_tokens(out, every, at, torch.ones_like(at))
        running = self.running.nonzero().squeeze(-1)
        self._append(running, new[running])

    def _append(self, at: Tensor, new: Tensor) -> None:
        """Append ``new`` to the slots ``at``, which end where it ends them."""
        length = self.lengths[at]
        self.tokens[at, length] = new
        self.lengths[at] = length + 1
        written = length + 1 - self.starts[at]
        self.running[at] = ~(torch.isin(new, self._ends) | (written >= self.max_new_tokens))

    def take_ended(self) -> list[Kept]:
        """The answers that ended; their slots are idle from now on."""
        running, lengths = self.running.tolist(), self.lengths.tolist()
        ended = [
            (slot, prompt)
            for slot, prompt in enumerate(self.prompts)
            if prompt is not None and not running[slot]
        ]
        if not ended:
            return []
        tokens = self.tokens.cpu()
        answers = []
        for slot, prompt in ended:
            own = tokens[slot, : lengths[slot]].clone()
            answers.append(self.writer.finished(prompt, slot, own))
            self.prompts[slot] = None
            self.lengths[slot] = self.starts[slot] = 1
        return answers

    def shrink(self) -> None:
        """Drop idle slots; for the tail, when no prompts are left."""
        busy = [slot for slot, prompt in enumerate(self.prompts) if prompt is not None]
        at = torch.tensor(busy, device=self.target.device)
        self.cache.keep(at)
        self.writer.keep(at)
        for name in ("tokens", "lengths", "starts", "running"):
            setattr(self, name, getattr(self, name)[at])
        self.prompts = [self.prompts[slot] for slot in busy]


def answer_all(
    slots: Slots[Kept], queue: list[Prompt], pace: Pace, more: Callable[[list[int]], int]
) -> Iterator[list[Kept]]:
    """Answer the prompts of ``queue``, in its order, and yield what has ended at every look.

    What is begun is finished: cut short, it would be the long answers that are missing. Whoever
    reads no further leaves what is under way unfinished.

    Args:
        queue: emptied on the way.
        more: asked after each look: how many more answers to begin at most; is given the tokens
            so far of each answer under way.
    """
    while True:
        yield slots.take_ended()
        wanted = more(slots.written()) if queue else 0
        idle = slots.idle()
        if wanted and len(idle) >= min(pace.refilled, len(slots)):
            idle = idle[:wanted]
            while queue and idle:
                part = next_prefill(queue, len(idle), pace.prefill_rows)
                slots.admit(part, idle[: len(part)])
                idle = idle[len(part) :]
            idle = slots.idle()
        if len(idle) == len(slots):
            return
        if not (queue and wanted) and len(idle) >= max(4, len(slots) // 4):
            slots.shrink()
        for _ in range(pace.look):
            slots.step()
