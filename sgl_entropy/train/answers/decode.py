"""Answers on one device, without features: continuous batching in plain torch.

On a GPU a prefill costs little, so features are cheaper computed anew in every batch of the
training (``fit.online``) than stored; what is kept is text. Answers are greedy, or sampled for
prompts that are answered more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.prompts.order import Prompt, in_length_blocks, next_prefill
from sgl_entropy.train.samples.generate import likeliest

# Steps between two looks at what has ended: each look waits for the device.
_LOOK = 8
# Padded prompt rows of one prefill, on a CPU and elsewhere.
_PREFILL_ROWS, _DEVICE_PREFILL_ROWS = 2048, 32768


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: longest answer.
        slots: sequences decoded at once.
        temperature: 0 = greedy.
        seed: of sampling.
    """

    max_new_tokens: int
    slots: int
    temperature: float = 0.0
    seed: int = 0


@torch.inference_mode()
def choose(
    target: PlainTarget, final: Tensor, temperature: float, draws: torch.Generator | None
) -> Tensor:
    """The next token of each row of final states [n, d]: int64 [n].

    Args:
        temperature: 0 = the likeliest, else sampled with ``draws``.
    """
    logits = target.logits(final)
    if not temperature:
        return likeliest(target, final, logits)
    weights = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(weights, 1, generator=draws).squeeze(-1)


class _Slots:
    """What each slot holds; every tensor on the target's device."""

    def __init__(self, target: PlainTarget, longest: int, given: Decoding, count: int) -> None:
        device = target.device
        self.target, self.given = target, given
        self.cache = target.new_cache(count)
        self.tokens = torch.zeros((count, longest), dtype=torch.long, device=device)
        self.lengths = torch.ones(count, dtype=torch.long, device=device)
        self.starts = torch.ones(count, dtype=torch.long, device=device)
        self.running = torch.zeros(count, dtype=torch.bool, device=device)
        self.prompts: list[Prompt | None] = [None] * count
        self.draws = torch.Generator(device)
        self.draws.manual_seed(given.seed)
        self._ends = torch.tensor(sorted(target.eos_ids), dtype=torch.long, device=device)

    def _append(self, at: Tensor, new: Tensor) -> None:
        """Put ``new`` behind the tokens of the slots ``at``, which end where it ends them."""
        length = self.lengths[at]
        self.tokens[at, length] = new
        self.lengths[at] = length + 1
        written = length + 1 - self.starts[at]
        ended = torch.isin(new, self._ends) | (written >= self.given.max_new_tokens)
        self.running[at] = ~ended

    def admit(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> None:
        """Prefill ``prompts`` into idle ``slots``, with each one's first answer token."""
        device = self.target.device
        longest = max(len(prompt.tokens) for prompt in prompts)
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.tokens)] = torch.tensor(prompt.tokens)
        lengths = torch.tensor([len(prompt.tokens) for prompt in prompts], device=device)
        ids, at = ids.to(device), torch.tensor(slots, device=device)
        out = self.target.forward(ids, torch.zeros_like(lengths), self.cache, slots=at)
        self.tokens[at, :longest] = ids
        self.lengths[at] = self.starts[at] = lengths
        last = out.final[torch.arange(len(prompts), device=device), lengths - 1]
        self._append(at, choose(self.target, last, self.given.temperature, self.draws))
        for slot, prompt in zip(slots, prompts, strict=True):
            self.prompts[slot] = prompt

    def step(self) -> None:
        """One more token for every running slot; the others compute along, unread."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        at = (self.lengths - 1).clamp(max=self.tokens.shape[1] - 2)
        out = self.target.forward(self.tokens[rows, at][:, None], at, self.cache)
        new = choose(self.target, out.final[:, 0], self.given.temperature, self.draws)
        running = self.running.nonzero().squeeze(-1)
        self._append(running, new[running])

    def take_ended(self) -> Iterator[tuple[Prompt, list[int]]]:
        """The sequences that ended, prompt and answer; their slots are idle then."""
        running, lengths = self.running.tolist(), self.lengths.tolist()
        held: Tensor | None = None
        for slot, prompt in enumerate(self.prompts):
            if prompt is None or running[slot]:
                continue
            held = self.tokens.cpu() if held is None else held
            yield prompt, held[slot, : lengths[slot]].tolist()
            self.prompts[slot] = None
            self.lengths[slot] = self.starts[slot] = 1

    def idle(self) -> list[int]:
        return [slot for slot, prompt in enumerate(self.prompts) if prompt is None]

    def shrink(self) -> None:
        """Drop idle slots; for the tail, when no prompts are left."""
        busy = [slot for slot, prompt in enumerate(self.prompts) if prompt is not None]
        at = torch.tensor(busy, device=self.lengths.device)
        self.cache.keep(at)
        for name in ("tokens", "lengths", "starts", "running"):
            setattr(self, name, getattr(self, name)[at])
        self.prompts = [self.prompts[slot] for slot in busy]


@torch.inference_mode()
def decode(
    target: PlainTarget,
    prompts: Sequence[Prompt],
    given: Decoding,
    take: Callable[[Prompt, list[int]], bool],
) -> None:
    """Answer ``prompts``, neighbours of similar length together.

    Args:
        take: is given a prompt and its tokens, prompt and answer (its end included), as they
            end; returns whether to begin more. Those begun are finished: cut short, it would be
            the long ones that are missing.
    """
    slots = min(given.slots, len(prompts))
    if not slots:
        return
    queue = in_length_blocks(prompts, 4 * slots)
    longest = max(len(prompt.tokens) for prompt in queue) + given.max_new_tokens + 1
    held = _Slots(target, longest, given, slots)
    most = _PREFILL_ROWS if target.device.type == "cpu" else _DEVICE_PREFILL_ROWS
    while True:
        for prompt, tokens in held.take_ended():
            if not take(prompt, tokens):
                queue.clear()
        idle = held.idle()
        if queue and len(idle) >= min(max(1, slots // 16), len(held.prompts)):
            while queue and idle:
                part = next_prefill(queue, len(idle), most)
                held.admit(part, idle[: len(part)])
                idle = idle[len(part) :]
        if len(idle) == len(held.prompts):
            return
        if not queue and len(idle) >= max(4, len(held.prompts) // 4):
            held.shrink()
        for _ in range(_LOOK):
            held.step()
