"""What verification saw on held-out text, and which thresholds and stops follow from it.

A drafted position is judged where all before it in its chain were accepted: these are the ones at
which EASD's rule is evaluated. Everything here counts on the text as ordinary verification wrote
it; a rule that fires changes the text behind it, so its rates in service are near, not equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord


@dataclass(frozen=True)
class Drafts:
    """Every verified draft, judged or not: what a draft stop is fitted to.

    Attributes:
        entropy: float64 [n], the drafter's where the token was drafted, nats.
        path: float64 [n], the drafter's probability of the chain up to and with the token.
        stood: bool [n], the chain was accepted up to and with the token.
    """

    entropy: Tensor
    path: Tensor
    stood: Tensor


@dataclass(frozen=True)
class Observations:
    """The m judged positions of all cycles, in order.

    Attributes:
        target_entropy, draft_entropy: float64 [m], nats.
        overlap: float64 [m], shares of N.
        accepted: bool [m], by ordinary verification.
        cycle: int64 [m], the number of the position's cycle; place: int64 [m], that in its chain.
        emitted: int64 [cycles], tokens.
        drafts: also of the positions behind a rejected one.
    """

    target_entropy: Tensor
    draft_entropy: Tensor
    overlap: Tensor
    accepted: Tensor
    cycle: Tensor
    place: Tensor
    emitted: Tensor
    drafts: Drafts

    @classmethod
    def of(cls, requests: Sequence[Sequence[CycleRecord]], top_n: int) -> Observations:
        """From the cycles of each request.

        Raises:
            ValueError: no judged position, a value that is no finite number, a position at which
                EASD fired, or overlaps that are no shares of ``top_n``; names request and cycle.
        """
        judged: list[tuple[float, float, float, bool, int, int]] = []
        drafts: list[tuple[float, float, bool]] = []
        emitted: list[int] = []
        for number, cycles in enumerate(requests, 1):
            for count, cycle in enumerate(cycles, 1):
                try:
                    _check(cycle, top_n)
                except ValueError as error:
                    raise ValueError(f"request {number}, cycle {count}: {error}") from None
                path = 1.0
                # Of a request that ended within the chain, nothing is known behind its end.
                for at in range(cycle.judged if cycle.ended else cycle.verified):
                    path *= cycle.draft_prob[at]
                    drafts.append((cycle.draft_entropy[at], path, at < cycle.accepted))
                judged += [
                    (
                        cycle.target_entropy[at],
                        cycle.draft_entropy[at],
                        round(cycle.overlap[at] * top_n) / top_n,
                        at < cycle.accepted,
                        len(emitted),
                        at,
                    )
                    for at in range(cycle.judged)
                ]
                emitted.append(cycle.emitted)
        if not judged:
            raise ValueError("no drafted position was verified: the answers are too short")
        target, draft, overlap, accepted, cycle_of, place = zip(*judged, strict=True)
        entropy, path_of, stood = zip(*drafts, strict=True)
        return cls(
            torch.tensor(target, dtype=torch.float64),
            torch.tensor(draft, dtype=torch.float64),
            torch.tensor(overlap, dtype=torch.float64),
            torch.tensor(accepted),
            torch.tensor(cycle_of),
            torch.tensor(place),
            torch.tensor(emitted),
            Drafts(
                torch.tensor(entropy, dtype=torch.float64),
                torch.tensor(path_of, dtype=torch.float64),
                torch.tensor(stood),
            ),
        )

    def __len__(self) -> int:
        return len(self.accepted)

    def rule(self, target: float, draft: float, top_n: int, overlap: float) -> EasdRule:
        """The rule whose thresholds are percentiles ``target`` and ``draft`` of the entropies.

        Raises:
            ValueError: a percentile outside 0 to 100, or settings that ``EasdRule`` refuses.
        """
        for value in (target, draft):
            if not 0 <= value <= 100:
                raise ValueError(f"a percentile must be a number from 0 to 100, found {value}")
        limits = [
            round(float(torch.quantile(entropy, at / 100)), 4)
            for entropy, at in ((self.target_entropy, target), (self.draft_entropy, draft))
        ]
        return EasdRule(limits[0], limits[1], top_n, overlap)

    def unsure(self, rule: EasdRule) -> Tensor:
        """bool [m]: both entropies are above the rule's thresholds."""
        return (self.target_entropy > rule.target_entropy) & (
            self.draft_entropy > rule.draft_entropy
        )

    def fires(self, rule: EasdRule) -> Tensor:
        """bool [m]: the rule's three conditions hold."""
        return self.unsure(rule) & (self.overlap >= rule.overlap - 1e-6)

    def rates(self, rule: EasdRule) -> dict[str, Any]:
        """What a rule would do to this text.

        Returns:
            ``share`` of the judged positions that fire, ``share_without_overlap`` that only the
            entropies would give; ``per_100_tokens`` fires, and ``changes_per_100_tokens`` of them
            that hit a token which would have been accepted; acceptance where it fires and where
            not (None without such positions); ``acceptance_length`` without EASD, and with it:
            chains end at their first fire.
        """
        fired = self.fires(rule)
        tokens = int(self.emitted.sum())
        ends = self.emitted.scatter_reduce(
            0, self.cycle[fired], self.place[fired] + 1, "amin", include_self=True
        )
        return {
            "share": _round(fired.double().mean()),
            "share_without_overlap": _round(self.unsure(rule).double().mean()),
            "per_100_tokens": _round(100 * fired.sum() / tokens),
            "changes_per_100_tokens": _round(100 * (fired & self.accepted).sum() / tokens),
            "acceptance_fired": _share(self.accepted[fired]),
            "acceptance_not_fired": _share(self.accepted[~fired]),
            "acceptance_length": _round(tokens / len(self.emitted)),
            "acceptance_length_easd": _round(ends.sum() / len(ends)),
        }

    def draft_stop(self, most: int = 10, least: int = 50) -> dict[str, list[float]]:
        """The table of ``policies.CalibratedStop``: how far ``path`` is to be believed.

        Args:
            most: bins, each of about as many drafts; least: drafts in each.

        Returns:
            ``edges`` between the bins, rising, nats; ``acceptance`` of each: chains that stood
            over the sum of their paths, at most 1.
        """
        entropy, path, stood = self.drafts.entropy, self.drafts.path, self.drafts.stood.double()
        bins = max(1, min(most, len(entropy) // least))
        inner = torch.arange(1, bins, dtype=torch.float64) / bins
        asked = {round(float(edge), 4) for edge in torch.quantile(entropy, inner)}
        # Many equal entropies: no bin without a draft, below an edge or above the last.
        edges: list[float] = []
        for edge in sorted(asked):
            below = entropy <= edge
            if edges:
                below &= entropy > edges[-1]
            if below.any() and (entropy > edge).any():
                edges.append(edge)
        bin_of = torch.bucketize(entropy, torch.tensor(edges, dtype=torch.float64))
        standing, believed = (
            torch.bincount(bin_of, weights, minlength=len(edges) + 1) for weights in (stood, path)
        )
        # Hopeless paths alone say nothing: the drafter is believed.
        ratio = torch.where(believed > 0, standing / believed.clamp_min(1e-30), 1.0)
        return {"edges": edges, "acceptance": [_round(value) for value in ratio.clamp_max(1.0)]}


def _check(cycle: CycleRecord, top_n: int) -> None:
    for name in ("target_entropy", "draft_entropy", "overlap", "draft_prob"):
        for value in getattr(cycle, name)[: cycle.verified]:
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}: the model computes no distribution there")
    for share in cycle.overlap:
        if abs(share * top_n - round(share * top_n)) > 1e-3:
            raise ValueError(f"overlap {share} is no share of {top_n}: another top_n was in force")
    if cycle.fired is not None:
        raise ValueError("EASD fired there; a calibration needs ordinary verification")


def _share(values: Tensor) -> float | None:
    return _round(values.double().mean()) if len(values) else None


def _round(value: Tensor | float) -> float:
    return round(float(value), 4)
