"""EASD at any thresholds, replayed: where it would check and fire, and what that costs.

Exact: checks and fires at the recorded positions of each cycle by itself, up to the first fire.
An estimate: everything behind a fire, since other text would have followed. Where the recorded
rule fired and the replayed one does not, the rest of the chain is not known; ``beyond`` counts
those cycles, which keep what they emitted. A token without alternative is kept in an engine, under
a grammar say; a trace does not tell, so there a record may disagree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sgl_entropy.verify.replay.ledger import Costs, CycleCounts, Ledger
from sgl_entropy.verify.replay.policy import (
    ROUNDING,
    Agreement,
    ReplayOptions,
    ReplayReport,
    column,
    table,
)
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader

# Of both models, nats: the table's rows.
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


@dataclass(frozen=True)
class Positions:
    """What EASD needs of a request's cycles, each [cycles, k].

    Attributes:
        reached: bool, the positions that the recorded walk came to, and that the rule looks at.
    """

    target_entropy: Tensor
    draft_entropy: Tensor
    overlap: Tensor
    reached: Tensor

    @classmethod
    def of(cls, request: RequestTrace, header: TraceHeader, accepted_only: bool) -> Positions:
        most, cycles = header.draft_tokens, request.cycles
        at = torch.arange(most)
        reached = at < column(cycles, "judged").unsqueeze(1)
        if accepted_only:
            # Whether a token that fired would have been accepted is not recorded: it is taken so.
            taken = at < column(cycles, "accepted").unsqueeze(1)
            reached &= taken | (at == column(cycles, "fired").unsqueeze(1))
        share = table(cycles, "overlap", most)
        # A share of whole tokens, whatever it was rounded to.
        share = (share * (header.top_n or 1)).round() / (header.top_n or 1)
        target = table(cycles, "target_entropy", most + 1)[:, :most]
        return cls(target, table(cycles, "draft_entropy", most), share, reached)

    def fires(self, rule: EasdRule, more: float = 0.0) -> Tensor:
        """bool [cycles, k] where the three conditions hold; ``more`` nats are asked for."""

        def limit(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32)

        return (
            self.reached
            & (self.target_entropy > limit(rule.target_entropy) + more)
            & (self.draft_entropy > limit(rule.draft_entropy) + more)
            & (self.overlap >= limit(rule.overlap))
        )


@dataclass(frozen=True)
class ReplayedOutcome:
    """Of each cycle, int64 [cycles]: positions checked, and the one that fires; -1 = none."""

    checked: Tensor
    fired: Tensor

    @classmethod
    def of(cls, fires: Tensor, reached: Tensor) -> ReplayedOutcome:
        first = torch.where(fires.any(1), fires.int().argmax(1), -1)
        at = torch.arange(fires.shape[1])
        before = (first < 0).unsqueeze(1) | (at <= first.unsqueeze(1))
        return cls((reached & before).sum(1), first)

    def emitted(self, recorded: Tensor) -> Tensor:
        """Tokens of each cycle: those before the fire and its replacement."""
        return torch.where(self.fired < 0, recorded, torch.minimum(recorded, self.fired + 1))


@dataclass
class _Row:
    rule: EasdRule
    checked: int = 0
    fired: int = 0
    emitted: int = 0


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
        self.rule = rule
        self.header = header
        self.ledger = Ledger()
        self.agreement = Agreement(header.rule == rule)
        self.checked = self.fired = self.on_accepted = self.beyond = self.cycles = 0
        self.rows = [
            _Row(dataclasses.replace(rule, target_entropy=nats, draft_entropy=nats))
            for nats in SWEEP
        ]

    def add(self, request: RequestTrace) -> None:
        held = Positions.of(request, self.header, self.rule.accepted_only)
        found = ReplayedOutcome.of(held.fires(self.rule), held.reached)
        names = ("verified", "emitted", "accepted", "fired")
        verified, emitted, accepted, fired = (column(request.cycles, name) for name in names)
        self.cycles += len(request.cycles)
        self.checked += int(found.checked.sum())
        self.fired += int((found.fired >= 0).sum())
        self.on_accepted += int(((found.fired >= 0) & (found.fired < accepted)).sum())
        self.beyond += int(((fired >= 0) & (found.fired < 0)).sum())
        self._check(request, held, found)
        drafted = verified
        if self.header.draft_stop is None:
            drafted = torch.full_like(verified, self.header.draft_tokens)
        before = CycleCounts(int(drafted.sum()), int(verified.sum()), int(emitted.sum()))
        after = dataclasses.replace(before, emitted=int(found.emitted(emitted).sum()))
        self.ledger.add(len(request.cycles), before, after)
        for row in self.rows:
            one = ReplayedOutcome.of(held.fires(row.rule), held.reached)
            row.checked += int(one.checked.sum())
            row.fired += int((one.fired >= 0).sum())
            row.emitted += int(one.emitted(emitted).sum())

    def report(self, costs: Costs | None) -> ReplayReport:
        figures = self.ledger.figures(costs)
        figures |= {
            "checked": self.checked,
            "fired": self.fired,
            "fired_on_accepted": self.on_accepted if self.header.rule is None else None,
            "fire_rate": round(self.fired / max(1, self.checked), 4),
            "beyond_the_record": self.beyond,
            "by_threshold": [
                {
                    "nats": row.rule.target_entropy,
                    "checked": row.checked,
                    "fired": row.fired,
                    "fire_rate": round(row.fired / max(1, row.checked), 4),
                    "tokens_per_cycle": round(row.emitted / self.cycles, 4),
                }
                for row in self.rows
            ],
        }
        notes = [f"by_threshold: both entropies at these nats, overlap {self.rule.overlap:g}"]
        if self.header.rule is not None and not self.agreement.agrees:
            notes.append("recorded under another rule: what stood behind its fires is not known")
        if self.header.rule is not None:
            notes.append("fired_on_accepted needs a trace without a rule (`policy record --exact`)")
        return ReplayReport(
            figures, self.agreement.agrees, self.agreement.disagreement, tuple(notes)
        )

    def _check(self, request: RequestTrace, held: Positions, found: ReplayedOutcome) -> None:
        if self.agreement.agrees is None:
            return
        checked, fired = (column(request.cycles, name) for name in ("checked", "fired"))

        def same(one: ReplayedOutcome) -> Tensor:
            return (one.checked == checked) & (one.fired == fired)

        if same(found).all():
            return
        either = [
            ReplayedOutcome.of(held.fires(self.rule, more), held.reached)
            for more in (-ROUNDING, ROUNDING)
        ]
        good = torch.stack([same(one) for one in (found, *either)]).any(0)
        for at in (~good).nonzero().flatten().tolist():
            what = (
                f"the rule checks {int(found.checked[at])} positions and fires at "
                f"{_place(found.fired[at])}, the record has {int(checked[at])} and "
                f"{_place(fired[at])}"
            )
            self.agreement.differs(request, at, what)


def make_easd(options: ReplayOptions, header: TraceHeader) -> EasdReplay:
    """Thresholds that are not given are the recorded rule's, or the defaults."""
    return EasdReplay(rule_of(options, header), header)


def rule_of(options: ReplayOptions, header: TraceHeader) -> EasdRule:
    """Reads the last of the options."""
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
