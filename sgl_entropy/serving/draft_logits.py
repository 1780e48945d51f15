"""What EASD needs to know about the drafter's distributions, computed at once or when asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.verify.easd import compared, likeliest
from sgl_entropy.verify.rule import EasdRule


@dataclass(frozen=True)
class DraftStats:
    """Statistics of draft distributions.

    Attributes:
        entropy: float32 [n, ...], in the rule's unit (``EasdRule.normalised``); nats: in nats.
        top_ids: int64 [n, ..., N], ids of the target.
        probs: float32 [n, ..., vocabulary], over the target's, for ``residual`` alone.
    """

    entropy: Tensor
    nats: Tensor
    top_ids: Tensor
    probs: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """The tensors that are there, in the order of the fields."""
        return [t for t in (self.entropy, self.nats, self.top_ids, self.probs) if t is not None]

    def rows(self, index: Any) -> DraftStats:
        """The rows at ``index`` of the first dimension."""
        return DraftStats(*(t[index] for t in self.parts()))

    def joined(self, other: DraftStats) -> DraftStats:
        """These, then the other's."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return DraftStats(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class DraftLogits:
    """Draft distributions whose statistics are computed when they are asked for.

    Attributes:
        logits: [n, draft vocab], raw.
        to_target: int64 [draft vocab], each draft id's id of the target; None = the same.
        vocab: the target's.
    """

    logits: Tensor
    rule: EasdRule
    to_target: Tensor | None
    vocab: int

    def rows(self, index: Any) -> DraftLogits:
        """The rows at ``index`` of the first dimension."""
        return replace(self, logits=self.logits[index])

    def joined(self, other: DraftLogits) -> DraftLogits:
        """These, then the other's."""
        return replace(self, logits=torch.cat((self.logits, other.logits)))

    def nats(self) -> Tensor:
        """float32 [n]."""
        return shannon_entropy(self.logits)

    def compared(self, nats: Tensor) -> Tensor:
        """Entropies in the rule's unit."""
        return compared(nats, self.logits.shape[-1], self.rule)

    def top_ids(self) -> Tensor:
        """int64 [n, N], the most likely tokens as ids of the target; -1 = there are no more."""
        ids = likeliest(self.logits, self.rule.top_n)
        if self.to_target is None:
            return ids
        if self.rule.top_n > self.logits.shape[-1]:
            return torch.where(ids >= 0, self.to_target[ids.clamp_min(0)], ids)
        return self.to_target[ids]

    def probs(self) -> Tensor:
        """float32 [n, vocab], over the target's vocabulary."""
        probs = torch.softmax(self.logits.float(), dim=-1)
        if self.to_target is None:
            return probs
        return probs.new_zeros(len(probs), self.vocab).index_copy_(1, self.to_target, probs)

    def stats(self) -> DraftStats:
        """All that the rule may ask for, now."""
        nats = self.nats()
        probs = self.probs() if self.rule.residual else None
        return DraftStats(self.compared(nats), nats, self.top_ids(), probs)
