"""EASD at any thresholds, replayed: where it would check and fire, and what that costs.

Exact: checks and fires at the recorded positions of each cycle by itself, up to the first fire.
An estimate: everything after a fire, since other text would have followed. Where the recorded rule
fired and the replayed one does not, the rest of the chain is not known: ``beyond_the_record``
counts those cycles, which keep what they emitted. An engine keeps a token that has no alternative
(under a grammar, say); a trace does not tell, so there a record may disagree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.verify.positions import Positions, column
from sgl_entropy.verify.replay.ledger import CycleCounts, Ledger, LedgerFigures, ReplayCosts
from sgl_entropy.verify.replay.policy import Agreement, ReplayOptions, ReplayReport
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader

# Of both models, nats: the table's rows.
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True)
class ThresholdRow:
    """Both thresholds at ``nats``."""

    nats: float
    checked: int
    fired: int
    fire_rate: float
    tokens_per_cycle: float


@dataclass(frozen=True)
class EasdReplayFigures:
    """What the rule would have done.

    Attributes:
        checked: positions at which the rule is evaluated; fire_rate: the share that fires.
        fired_on_accepted: fires on tokens that were accepted; None where the trace was recorded
            under a rule, which hides that.
        beyond_the_record: cycles that the recorded rule cut and this one would not.
    """

    ledger: LedgerFigures = field(metadata=FLAT)
    checked: int
    fired: int
    fired_on_accepted: int | None
    fire_rate: float
    beyond_the_record: int
    by_threshold: tuple[ThresholdRow, ...]


@dataclass(frozen=True)
class ReplayedOutcome:
    """Of each cycle, int64 [cycles]: positions checked, and the one that fires; -1 = none."""

    checked: Tensor
    fired: Tensor

    @classmethod
    def of(cls, fires: Tensor, reached: Tensor) -> ReplayedOutcome:
        """Up to the first of ``fires``; both bool [cycles, k]."""
        fires = fires & reached
        first = torch.where(fires.any(1), fires.int().argmax(1), -1)
        at = torch.arange(fires.shape[1])
        before = (first < 0).unsqueeze(1) | (at <= first.unsqueeze(1))
        return cls((reached & before).sum(1), first)

    def emitted(self, recorded: Tensor) -> Tensor:
        """Tokens of each cycle: those before the fire and its replacement."""
        return torch.where(self.fired < 0, recorded, torch.minimum(recorded, self.fired + 1))


class RuleTally:
    """Sums of one rule over a trace."""

    def __init__(self, rule: EasdRule) -> None:
        self.rule = rule
        self.checked = self.fired = self.emitted = 0

    def add(self, positions: Positions, reached: Tensor, emitted: Tensor) -> ReplayedOutcome:
        """Takes in a request's cycles; [cycles, k] and, as recorded, [cycles]."""
        outcome = ReplayedOutcome.of(positions.fires(self.rule), reached)
        self.checked += int(outcome.checked.sum())
        self.fired += int((outcome.fired >= 0).sum())
        self.emitted += int(outcome.emitted(emitted).sum())
        return outcome

    @property
    def fire_rate(self) -> float:
        """Share of the checked positions."""
        return round(self.fired / max(1, self.checked), 4)


class EasdReplay:
    """A rule over a trace.

    Raises:
        ValueError: the rule needs what traces do not hold.
    """

    def __init__(self, rule: EasdRule, header: TraceHeader) -> None:
        if rule.normalised:
            raise ValueError("easd: traces hold entropies in nats, not normalised ones")
        if header.top_n is None:
            raise ValueError("easd: the trace's header does not say of how many tokens (top_n)")
        if rule.top_n != header.top_n:
            raise ValueError(
                f"easd: the trace holds the overlap of {header.top_n} tokens, not of {rule.top_n}"
            )
        self.header = header
        self.ledger = Ledger()
        self.agreement = Agreement(header.rule == rule)
        self.on_accepted = self.beyond = 0
        self.tally = RuleTally(rule)
        self.sweep = [
            RuleTally(dataclasses.replace(rule, target_entropy=nats, draft_entropy=nats))
            for nats in SWEEP
        ]

    def add(self, request: RequestTrace) -> None:
        cycles, width = request.cycles, self.header.draft_tokens
        positions = Positions.of(cycles, width, self.tally.rule.top_n)
        names = ("emitted", "accepted", "fired", "checked", "judged")
        emitted, accepted, fired, checked, judged = (column(cycles, name) for name in names)
        at = torch.arange(width)
        reached = at < judged.unsqueeze(1)
        if self.tally.rule.accepted_only:
            # A trace does not tell whether a token that fired would have been accepted: yes, say.
            reached &= (at < accepted.unsqueeze(1)) | (at == fired.unsqueeze(1))
        outcome = self.tally.add(positions, reached, emitted)
        for row in self.sweep:
            row.add(positions, reached, emitted)
        self.on_accepted += int(((outcome.fired >= 0) & (outcome.fired < accepted)).sum())
        self.beyond += int(((fired >= 0) & (outcome.fired < 0)).sum())
        before = CycleCounts.recorded(cycles, self.header)
        after = dataclasses.replace(before, emitted=int(outcome.emitted(emitted).sum()))
        self.ledger.add(len(cycles), before, after)

        def same(more: float) -> Tensor:
            one = ReplayedOutcome.of(positions.fires(self.tally.rule, more), reached)
            return (one.checked == checked) & (one.fired == fired)

        def differs(cycle: int) -> str:
            return (
                f"the rule checks {int(outcome.checked[cycle])} positions and fires at "
                f"{_place(outcome.fired[cycle])}, the record has {int(checked[cycle])} and "
                f"{_place(fired[cycle])}"
            )

        self.agreement.check(request, same, differs)

    def report(self, costs: ReplayCosts | None) -> ReplayReport:
        ledger, under_a_rule = self.ledger.figures(costs), self.header.rule is not None
        figures = EasdReplayFigures(
            ledger,
            self.tally.checked,
            self.tally.fired,
            None if under_a_rule else self.on_accepted,
            self.tally.fire_rate,
            self.beyond,
            tuple(
                ThresholdRow(
                    row.rule.target_entropy,
                    row.checked,
                    row.fired,
                    row.fire_rate,
                    round(row.emitted / ledger.cycles, 4),
                )
                for row in self.sweep
            ),
        )
        overlap = self.tally.rule.overlap
        notes = [f"by_threshold: both entropies at these nats, overlap {overlap:g}"]
        if under_a_rule and not self.agreement.agrees:
            notes.append("recorded under another rule: what followed its fires is not known")
        if under_a_rule:
            notes.append("fired_on_accepted needs a trace without a rule (`policy record --exact`)")
        return self.agreement.report(figures, notes)


def make_easd(options: ReplayOptions, header: TraceHeader) -> EasdReplay:
    """Thresholds that are not given are the recorded rule's, or the defaults."""
    return EasdReplay(rule_of(options, header), header)


def rule_of(options: ReplayOptions, header: TraceHeader) -> EasdRule:
    """The rule that the options name; no option may be left after it."""
    base = header.rule or EasdRule(top_n=header.top_n or EasdRule.top_n)
    rule = dataclasses.replace(
        base,
        target_entropy=options.number("target_entropy", base.target_entropy),
        draft_entropy=options.number("draft_entropy", base.draft_entropy),
        overlap=options.number("overlap", base.overlap),
        accepted_only=options.flag("accepted_only", base.accepted_only),
    )
    options.done()
    return rule


def _place(fired: Tensor) -> str:
    return "none" if fired < 0 else str(int(fired))
