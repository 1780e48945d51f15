"""How unsure the target is over a batch's cycle: what the choice of a drafter goes by.

``begin`` reads the target's raw logits before anything is applied to them, ``record`` takes those
positions that a request emitted; both do nothing where one drafter is served.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.serving.switch_counters import NAMES

if TYPE_CHECKING:
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

# On SGLang's EagleVerifyInput.
_REGIME = "sgl_entropy_regime"


@dataclass
class Regime:
    """One cycle of a batch.

    Attributes:
        drafter: number of the one that drafted it.
        entropy: [b][nodes], the target's, nats; NaN at nodes that were not verified.
        total: nats, over ``positions`` emitted ones.
    """

    drafter: int
    entropy: list[list[float]] = field(default_factory=list)
    total: float = 0.0
    positions: int = 0

    @property
    def mean(self) -> float:
        """NaN = not known."""
        return self.total / self.positions if self.positions else math.nan


def start(draft: EagleVerifyInput, drafter: int) -> Regime:
    """Note which drafter made a draft; what its verification meets is collected in the result."""
    regime = Regime(drafter)
    setattr(draft, _REGIME, regime)
    return regime


def begin(draft: EagleVerifyInput, logits: Tensor) -> None:
    """Keep the target's entropy at every verified node.

    Args:
        logits: [b * n, vocabulary], the target's, raw.
    """
    regime: Regime | None = getattr(draft, _REGIME, None)
    if regime is None:
        return
    rows = (draft.retrive_index >= 0).flatten().nonzero().squeeze(1)
    entropy = torch.full(draft.retrive_index.shape, math.nan, device=logits.device)
    raw = logits if len(rows) == len(logits) else logits[rows]
    entropy.view(-1)[rows] = shannon_entropy(raw).to(entropy.dtype)
    regime.entropy = entropy.tolist()


def record(
    draft: Any, index: int, path: list[int], emitted: int, tell: bool = False
) -> tuple[int, dict[str, Any] | None] | None:
    """Collect what one request emitted.

    Args:
        path: the accepted nodes of the request, root first, as flat numbers.
        emitted: tokens that it added to the output; fewer than nodes where it ended inside.
        tell: the request asks for its cycles.

    Returns:
        The drafter's number, and what to tell of the cycle: ``drafter`` (its name), ``drafted``
        (the verified tokens), ``accepted``, ``emitted``, ``target_entropy`` (nats, of each emitted
        position). None where one drafter is served.
    """
    regime: Regime | None = getattr(draft, _REGIME, None)
    if regime is None:
        return None
    first = index * draft.draft_token_num
    nodes = [node - first for node in path[:emitted]]
    met = [nats for node in nodes if math.isfinite(nats := regime.entropy[index][node])]
    regime.total += sum(met)
    regime.positions += len(met)
    if not tell:
        return regime.drafter, None
    tokens = draft.draft_token[first : first + draft.draft_token_num]
    return regime.drafter, {
        "drafter": NAMES[regime.drafter],
        "drafted": tokens[draft.retrive_index[index] >= 0].tolist()[1:],
        "accepted": min(len(path) - 1, emitted),
        "emitted": emitted,
        "target_entropy": [round(nats, 6) for nats in met],
    }
