"""What verification saw on held-out text, and which thresholds and stops follow from it.

A drafted position is judged where all before it in its chain were accepted; there EASD's rule is
evaluated. All counts are of the text that ordinary verification wrote. A rule that fires changes
the text that follows, so its rates in service are close to these, not equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.verify.positions import Positions, column, table
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord


@dataclass(frozen=True)
class VerifiedDrafts:
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
class FireRates:
    """What a rule would do to a text.

    Attributes:
        share: of the judged positions that fire.
        share_without_overlap: of those at which both entropies are above the thresholds.
        per_100_tokens: fires.
        changes_per_100_tokens: fires on tokens that would have been accepted.
        acceptance_fired, acceptance_not_fired: ordinary acceptance where the rule fires and where
            it does not; None without such positions.
        acceptance_length: tokens a cycle without EASD.
        acceptance_length_easd: the same if every chain ends at its first fire.
    """

    share: float
    share_without_overlap: float
    per_100_tokens: float
    changes_per_100_tokens: float
    acceptance_fired: float | None
    acceptance_not_fired: float | None
    acceptance_length: float
    acceptance_length_easd: float


@dataclass(frozen=True)
class StopTable:
    """The table of ``policies.CalibratedStop``: how far ``path`` is to be believed.

    Attributes:
        edges: between bins of the drafter's entropy, rising, nats.
        acceptance: of each bin: chains that stood over the sum of their paths, at most 1.
    """

    edges: tuple[float, ...]
    acceptance: tuple[float, ...]


@dataclass(frozen=True)
class Observations:
    """The m judged positions of all cycles, in order.

    Attributes:
        positions: float64, flat: [m] each.
        accepted: bool [m], by ordinary verification.
        cycle: int64 [m], the number of the position's cycle; place: int64 [m], that in its chain.
        emitted: int64 [cycles], tokens.
        drafts: also of the positions after a rejected one.
    """

    positions: Positions
    accepted: Tensor
    cycle: Tensor
    place: Tensor
    emitted: Tensor
    drafts: VerifiedDrafts

    @classmethod
    def of(cls, requests: Sequence[Sequence[CycleRecord]], top_n: int) -> Observations:
        """From the cycles of each request.

        Raises:
            ValueError: no judged position, a value that is no finite number, a position at which
                EASD fired, or overlaps that are no shares of ``top_n``; names request and cycle.
        """
        for number, request in enumerate(requests, 1):
            for count, cycle in enumerate(request, 1):
                try:
                    _check(cycle, top_n)
                except ValueError as error:
                    raise ValueError(f"request {number}, cycle {count}: {error}") from None
        cycles = [cycle for request in requests for cycle in request]
        width = max((cycle.verified for cycle in cycles), default=0)
        if not width:
            raise ValueError("no drafted position was verified: the answers are too short")
        judged, accepted, ended = (column(cycles, name) for name in ("judged", "accepted", "ended"))
        at = torch.arange(width)
        reached = at < judged[:, None]
        cycle_of, place = reached.nonzero(as_tuple=True)
        # After the end of a request that ended within the chain, nothing is known.
        known = at < torch.where(ended == 1, judged, column(cycles, "verified"))[:, None]
        prob = table(cycles, "draft_prob", width, torch.float64)
        every = Positions.of(cycles, width, top_n, torch.float64)
        return cls(
            every.at(reached),
            place < accepted[cycle_of],
            cycle_of,
            place,
            column(cycles, "emitted"),
            VerifiedDrafts(
                every.draft_entropy[known],
                prob.cumprod(1)[known],
                (at < accepted[:, None])[known],
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
            for entropy, at in (
                (self.positions.target_entropy, target),
                (self.positions.draft_entropy, draft),
            )
        ]
        return EasdRule(limits[0], limits[1], top_n, overlap)

    def rates(self, rule: EasdRule) -> FireRates:
        """What ``rule`` would do to this text."""
        fired = self.positions.fires(rule)
        tokens = int(self.emitted.sum())
        ends = self.emitted.scatter_reduce(
            0, self.cycle[fired], self.place[fired] + 1, "amin", include_self=True
        )
        return FireRates(
            share=_round(fired.double().mean()),
            share_without_overlap=_round(self.positions.unsure(rule).double().mean()),
            per_100_tokens=_round(100 * fired.sum() / tokens),
            changes_per_100_tokens=_round(100 * (fired & self.accepted).sum() / tokens),
            acceptance_fired=_share(self.accepted[fired]),
            acceptance_not_fired=_share(self.accepted[~fired]),
            acceptance_length=_round(tokens / len(self.emitted)),
            acceptance_length_easd=_round(ends.sum() / len(ends)),
        )

    def draft_stop(self, most: int = 10, least: int = 50) -> StopTable:
        """A table of up to ``most`` bins of about as many drafts each, at least ``least``."""
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
        return StopTable(tuple(edges), tuple(_round(value) for value in ratio.clamp_max(1.0)))


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
