"""Strictness by regime, replayed: what relaxed acceptance would have taken, what EASD rejected.

Exact: whether the first token that was not accepted would have stood. An estimate: the tokens
behind it, which are taken to stand where typical acceptance takes them too, or where the target
gives them more than half (its greedy choice for certain); and everything that follows, since the
text would have been another.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sgl_entropy.verify.easd import Uncertainty
from sgl_entropy.verify.policies import Strictness, Typical
from sgl_entropy.verify.replay.easd import EasdReplay, Positions, rule_of
from sgl_entropy.verify.replay.ledger import Costs, CycleCounts, Ledger
from sgl_entropy.verify.replay.policy import ReplayOptions, ReplayReport, column, table
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader


class StrictnessReplay:
    """Typical acceptance below an entropy of the target, exact above, EASD where its rule fires.

    Raises:
        ValueError: the trace was recorded with relaxed acceptance, or does not fit the rule.
    """

    def __init__(self, policy: Strictness, rule: EasdRule | None, header: TraceHeader) -> None:
        if header.relaxed_below:
            raise ValueError(
                f"strictness: acceptance was relaxed below {header.relaxed_below:g} nats when the "
                "trace was recorded, so what stood exactly is not known: record it without"
            )
        if not policy.relaxed_below >= 0:
            raise ValueError(f"strictness: below must be from 0, found {policy.relaxed_below}")
        if rule is not None:
            EasdReplay(rule, header)  # refuses what a trace does not hold
        self.policy = policy
        self.rule = rule
        self.header = header
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
        # Behind a recorded end or fire nothing is known.
        cut = ended | (recorded_fire >= 0)
        limit = torch.where(cut, accepted, verified)
        judged = torch.where(ended, accepted, torch.where(cut, accepted + 1, verified))
        alive = torch.ones(len(cycles), dtype=torch.bool)
        got = torch.ones_like(emitted)
        for at in range(most):
            fire = alive & fires[:, at] & (at < judged)
            self.fired += int(fire.sum())
            stands = (at < accepted) | relaxed[:, at] | ((at > accepted) & (prob[:, at] > 0.5))
            alive = alive & ~fire & (at < limit) & stands
            got += alive
            more = alive & (at >= accepted)
            self.first += int((more & (at == accepted)).sum())
            self.relaxed += int((more & relaxed[:, at]).sum())
        got = torch.where(ended, torch.minimum(got, emitted), got)
        self.lost += int((emitted - got).clamp_min(0).sum())
        drafted = verified
        if self.header.draft_stop is None:
            drafted = torch.full_like(verified, most)
        before = CycleCounts(int(drafted.sum()), int(verified.sum()), int(emitted.sum()))
        after = dataclasses.replace(before, emitted=int(got.sum()))
        self.ledger.add(len(cycles), before, after)

    def report(self, costs: Costs | None) -> ReplayReport:
        figures = self.ledger.figures(costs)
        gained = figures["emitted"]["under"] - figures["emitted"]["recorded"] + self.lost
        figures |= {
            "cycles_that_go_on": self.first,
            "relaxed_tokens": self.relaxed,
            "tokens_gained": gained,
            "fired": self.fired,
            "tokens_lost": self.lost,
        }
        return ReplayReport(
            figures,
            notes=(
                "not lossless; tokens behind the first relaxed one and "
                "behind a fire are an estimate",
            ),
        )

    def _relaxed(self, request: RequestTrace, prob: Tensor) -> Tensor:
        entropy = table(request.cycles, "target_entropy", prob.shape[1] + 1)[:, :-1]
        nothing = Uncertainty(entropy, torch.empty(*entropy.shape, 0, dtype=torch.long))
        return self.policy.decide(prob, nothing, nothing) == self.policy.RELAXED

    def _fires(self, request: RequestTrace, verified: Tensor) -> Tensor:
        most = self.header.draft_tokens
        if self.rule is None:
            return torch.zeros(len(request.cycles), most, dtype=torch.bool)
        held = Positions.of(request, self.header, False)
        known = torch.arange(most) < verified.unsqueeze(1)
        return dataclasses.replace(held, reached=known).fires(self.rule)


def make_strictness(options: ReplayOptions, header: TraceHeader) -> StrictnessReplay:
    plain = Typical()
    typical = Typical(options.number("eps", plain.eps), options.number("delta", plain.delta))
    below = options.number("below", 0.5)
    rule = rule_of(options, header) if options.flag("easd", header.rule is not None) else None
    options.done()
    return StrictnessReplay(Strictness(below, typical), rule, header)
