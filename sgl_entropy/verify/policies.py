"""Decisions by uncertainty: when to stop drafting, which tokens to accept, which drafter drafts.

Each policy is one small object that decides from a step's statistics. It keeps no state of
requests, so that an engine's decisions can be replayed from its record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftStep:
    """What is known after a token was drafted, one entry a request.

    Attributes:
        depth: how many tokens the chain holds, this one included.
        entropy: float32 [b], of the drafter's distribution that the token was chosen from, nats.
        path: float32 [b], the drafter's probability of the whole chain so far.
    """

    depth: int
    entropy: Tensor
    path: Tensor


class DraftStop(Protocol):
    """When a request's chain ends. Verification stays exact, so outputs do not change."""

    def stops(self, step: DraftStep) -> Tensor:
        """bool [b]: no further token; the one just drafted is kept."""


@dataclass(frozen=True)
class NoStop:
    """Chains of full length."""

    def stops(self, step: DraftStep) -> Tensor:
        return torch.zeros_like(step.entropy, dtype=torch.bool)


@dataclass(frozen=True)
class Svip:
    """SVIP's rule: stop after a token with sqrt(c H_d) > h; 0.15 and 0.3 are H_d > 0.6 nats.

    The root of c H bounds how unlikely acceptance is from below (SVIP, eq. 5).
    """

    factor: float = 0.15
    limit: float = 0.3

    def __post_init__(self) -> None:
        if not self.factor > 0 or not self.limit > 0:
            raise ValueError(
                f"svip: factor and limit must be above 0, found {self.factor}, {self.limit}"
            )

    def stops(self, step: DraftStep) -> Tensor:
        return (self.factor * step.entropy).sqrt() > self.limit


@dataclass(frozen=True)
class CalibratedStop:
    """Stop where one more token would not pay for its draft step (ours).

    A further token is worth at most the chance that the whole chain before it is accepted. The
    drafter's own probability of the chain says that but for a bias, which depends on how unsure
    it is, and is measured on held-out text. Where the chance is below ``cost``, a draft step in
    units of the tokens that a cycle's time is worth, drafting on loses time.

    Attributes:
        edges: rising entropies between bins, nats; one at an edge belongs below it.
        acceptance: of each bin, one more than edges: of the chains whose last token was drafted
            at such an entropy, how many stood as a whole, over the sum of their ``path``; at
            most 1. (Not the acceptance of that token: ``path`` holds its probability already.)
        cost: of a draft step, in tokens.
    """

    edges: tuple[float, ...]
    acceptance: tuple[float, ...]
    cost: float
    # Asked for at every draft step, so the tensors are kept where the steps are.
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not all(math.isfinite(edge) for edge in self.edges):
            raise ValueError("calibrated stop: edges must be finite numbers")
        if len(self.acceptance) != len(self.edges) + 1:
            raise ValueError("calibrated stop: expected one acceptance more than edges")
        if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("calibrated stop: edges must rise")
        if any(not 0 <= a <= 1 for a in self.acceptance) or not 0 < self.cost < 1:
            raise ValueError("calibrated stop: acceptances and cost must be shares")

    def stops(self, step: DraftStep) -> Tensor:
        edges, acceptance = self._on(step.entropy.device)
        return acceptance[torch.bucketize(step.entropy, edges)] * step.path < self.cost

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = (
                torch.tensor(self.edges, dtype=torch.float32, device=device),
                torch.tensor(self.acceptance, dtype=torch.float32, device=device),
            )
        return self._tables[device]


@dataclass(frozen=True)
class Typical:
    """Typical acceptance: x is accepted where P_t(x) > min(eps, delta exp(-H_t)). Not lossless."""

    eps: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1 or not 0 < self.delta <= 1:
            raise ValueError(
                f"typical: eps and delta must be shares, found {self.eps}, {self.delta}"
            )

    def accepts(self, probability: Tensor, entropy: Tensor) -> Tensor:
        """bool [...] of P_t(x) and H_t (nats)."""
        limit = (self.delta * torch.exp(-entropy)).clamp_max(self.eps)
        return probability > limit


@dataclass(frozen=True)
class DrafterSwitch:
    """Which of two drafters works for a batch: the small one while text is easy. Lossless.

    Hysteresis keeps it from switching to and fro: the large one takes over above ``up`` nats of
    mean target entropy, the small one again below ``down``. The defaults (nats) are a guess (ours):
    `sgl-entropy policy replay` over a trace says how often they would switch.
    """

    down: float = 1.0
    up: float = 1.5

    SMALL, LARGE = 0, 1

    def __post_init__(self) -> None:
        if not 0 <= self.down < self.up < math.inf:
            raise ValueError(
                f"drafter switch: expected 0 <= down < up, found {self.down}, {self.up}"
            )

    def choose(self, now: int, mean_entropy: float) -> int:
        """The drafter of the next cycle. An entropy that is not known changes nothing."""
        if mean_entropy > self.up:
            return self.LARGE
        if mean_entropy < self.down:
            return self.SMALL
        return now
