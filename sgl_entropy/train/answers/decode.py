"""Answers on one device, without features.

On a GPU a prefill costs little, so features are cheaper computed anew in every batch of the
training (``fit.online``) than stored; what is kept is text. Answers are greedy, or sampled for
prompts that are answered more than once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.target.plain import PlainTarget, TargetOutput
from sgl_entropy.target.reading import likeliest
from sgl_entropy.train.answers.file import Answered
from sgl_entropy.train.answers.slots import Pace, Slots
from sgl_entropy.train.prompts.order import PREFILL_ROWS, Prompt

# Decode steps between two looks at what has ended: each look waits for the device.
_LOOK = 8
# Padded prompt rows of one prefill on a GPU.
_DEVICE_PREFILL_ROWS = 32768


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

    def pace(self, device: torch.device) -> Pace:
        """When the slots on ``device`` are looked at and filled."""
        rows = PREFILL_ROWS if device.type == "cpu" else _DEVICE_PREFILL_ROWS
        return Pace(_LOOK, max(1, self.slots // 16), rows)

    def slots_for(self, target: PlainTarget, prompts: list[Prompt]) -> Slots[Answered]:
        """Empty slots that any of ``prompts`` fits into."""
        longest = max(len(prompt.tokens) for prompt in prompts)
        count, writer = min(self.slots, len(prompts)), TokenChooser(target, self)
        return Slots(target, count, longest, self.max_new_tokens, writer)


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


class TokenChooser:
    """Chooses tokens and keeps nothing else; see ``slots.Writer``."""

    tap_layers: tuple[int, ...] = ()

    def __init__(self, target: PlainTarget, given: Decoding) -> None:
        self.target, self.temperature = target, given.temperature
        self._draws = torch.Generator(target.device)
        self._draws.manual_seed(given.seed)

    def next_tokens(self, out: TargetOutput, slots: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
        """See ``Writer``."""
        last = out.final[torch.arange(len(rows), device=rows.device), rows - 1]
        return choose(self.target, last, self.temperature, self._draws)

    def finished(self, prompt: Prompt, slot: int, tokens: Tensor) -> Answered:
        """See ``Writer``."""
        own = tuple(tokens.tolist())
        return Answered(prompt.prompt_id, len(prompt.tokens), own, self.temperature)

    def keep(self, slots: Tensor) -> None:
        """See ``Writer``: there is nothing to keep."""
