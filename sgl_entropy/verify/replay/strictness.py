"""Strictness by regime, replayed: what relaxed acceptance would have taken, what EASD rejected.

Typical acceptance where the target's entropy is below a limit, exact acceptance above it, and EASD
where its rule fires. Exact: whether the first token that was not accepted would be kept. An
estimate: the tokens after it, which are kept where typical acceptance takes them too, or where the
target gives them more than half (its greedy choice for certain); and all later cycles, since the
text would have been another. (The combination is ours.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.verify.policies import Typical
from sgl_entropy.verify.positions import Positions, column, table
from sgl_entropy.verify.replay.easd import EasdReplay, rule_of
from sgl_entropy.verify.replay.ledger import CycleCounts, Ledger, LedgerFigures, ReplayCosts
from sgl_entropy.verify.replay.policy import ReplayOptions, ReplayReport
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader


@dataclass(frozen=True)
class StrictnessFigures:
    """What the regimes would have done.

    Attributes:
        cycles_that_go_on: past the token at which the recorded cycle ended.
        relaxed_tokens: that typical acceptance alone takes; tokens_gained: those and what follows.
        fired: EASD's fires; tokens_lost: what they cut.
    """

    ledger: LedgerFigures = field(metadata=FLAT)
    cycles_that_go_on: int
    relaxed_tokens: int
    tokens_gained: int
    fired: int
    tokens_lost: int


class StrictnessReplay:
    """The regimes over a trace.

    Args:
        below: typical acceptance where the target's entropy is below so many nats.
        rule: EASD's; None = off.

    Raises:
        ValueError: the trace was recorded with relaxed acceptance, or does not fit the rule.
    """

    def __init__(
        self, below: float, typical: Typical, rule: EasdRule | None, header: TraceHeader
    ) -> None:
        if header.relaxed_below:
            raise ValueError(
                f"strictness: acceptance was relaxed below {header.relaxed_below:g} nats when the "
                "trace was recorded, so what exact acceptance takes is not known: record it without"
            )
        if not below >= 0:
            raise ValueError(f"strictness: below must be from 0, found {below}")
        if rule is not None:
            EasdReplay(rule, header)  # refuses what a trace does not hold
        self.below, self.typical, self.rule, self.header = below, typical, rule, header
        self.ledger = Ledger()
        self.first = self.relaxed = self.fired = self.lost = 0

    def add(self, request: RequestTrace) -> None:
        cycles, most = request.cycles, self.header.draft_tokens
        names = ("verified", "accepted", "emitted", "fired")
        verified, accepted, emitted, recorded_fire = (column(cycles, name) for name in names)
        prob = table(cycles, "target_prob", most)
        relaxed = self._relaxed(request, prob)
        fires = self._fires(request, verified)
        ended = torch.tensor([cycle.ended for cycle in cycles], dtype=torch.bool)
        # After a recorded end or fire nothing is known.
        cut = ended | (recorded_fire >= 0)
        limit = torch.where(cut, accepted, verified)
        judged = torch.where(ended, accepted, torch.where(cut, accepted + 1, verified))
        alive = torch.ones(len(cycles), dtype=torch.bool)
        got = torch.ones_like(emitted)
        for at in range(most):
            fire = alive & fires[:, at] & (at < judged)
            self.fired += int(fire.sum())
            kept = (at < accepted) | relaxed[:, at] | ((at > accepted) & (prob[:, at] > 0.5))
            alive = alive & ~fire & (at < limit) & kept
            got += alive
            more = alive & (at >= accepted)
            self.first += int((more & (at == accepted)).sum())
            self.relaxed += int((more & relaxed[:, at]).sum())
        got = torch.where(ended, torch.minimum(got, emitted), got)
        self.lost += int((emitted - got).clamp_min(0).sum())
        before = CycleCounts.recorded(cycles, self.header)
        after = dataclasses.replace(before, emitted=int(got.sum()))
        self.ledger.add(len(cycles), before, after)

    def report(self, costs: ReplayCosts | None) -> ReplayReport:
        ledger = self.ledger.figures(costs)
        gained = int(ledger.emitted.under - ledger.emitted.recorded) + self.lost
        figures = StrictnessFigures(ledger, self.first, self.relaxed, gained, self.fired, self.lost)
        note = "not lossless; tokens after the first relaxed one and after a fire are an estimate"
        return ReplayReport(None, None, figures, (note,))

    def _relaxed(self, request: RequestTrace, prob: Tensor) -> Tensor:
        entropy = table(request.cycles, "target_entropy", prob.shape[1] + 1)[:, :-1]
        return (entropy < self.below) & self.typical.accepts(prob, entropy)

    def _fires(self, request: RequestTrace, verified: Tensor) -> Tensor:
        most = self.header.draft_tokens
        if self.rule is None:
            return torch.zeros(len(request.cycles), most, dtype=torch.bool)
        fires = Positions.of(request.cycles, most, self.rule.top_n).fires(self.rule)
        return fires & (torch.arange(most) < verified.unsqueeze(1))


def make_strictness(options: ReplayOptions, header: TraceHeader) -> StrictnessReplay:
    plain = Typical()
    typical = Typical(options.number("eps", plain.eps), options.number("delta", plain.delta))
    below = options.number("below", 0.5)
    rule = rule_of(options, header) if options.flag("easd", header.rule is not None) else None
    options.done()
    return StrictnessReplay(below, typical, rule, header)
