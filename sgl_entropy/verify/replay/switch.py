"""Drafter choice by entropy, replayed: which of two drafters would have drafted each cycle.

Exact for a batch of one: a server chooses by the mean over its batch, and a trace does not say
which requests were together. A trace does not tell the other drafter's acceptance either, so there
are no speeds: the recorded drafter's acceptance on either side shows where a smaller one may do.
"""

from __future__ import annotations

from dataclasses import dataclass

from sgl_entropy.verify.policies import DrafterSwitch
from sgl_entropy.verify.replay.ledger import ReplayCosts
from sgl_entropy.verify.replay.policy import ReplayOptions, ReplayReport
from sgl_entropy.verify.trace import RequestTrace, TraceHeader

_NAMES = ("small", "large")


@dataclass(frozen=True)
class DrafterShare:
    """The cycles of one drafter; ``tokens_per_cycle`` are the recorded drafter's."""

    drafter: str
    cycles: int
    share: float
    tokens_per_cycle: float | None


@dataclass(frozen=True)
class SwitchFigures:
    """How often the drafter would have changed; ``cycles_per_switch``: None without a switch."""

    requests: int
    cycles: int
    switches: int
    cycles_per_switch: float | None
    by_drafter: tuple[DrafterShare, ...]


class SwitchReplay:
    """A ``DrafterSwitch`` over a trace; each request begins with the drafter ``start``."""

    def __init__(self, policy: DrafterSwitch, start: int = DrafterSwitch.SMALL) -> None:
        self.policy = policy
        self.start = start
        self.switches = 0
        self.requests = 0
        self.cycles = [0, 0]
        self.emitted = [0, 0]

    def add(self, request: RequestTrace) -> None:
        now = self.start
        for number, cycle in enumerate(request.cycles):
            if number:
                # Known when the next chain is drafted: the entropies after the emitted tokens.
                seen = request.cycles[number - 1]
                met = seen.target_entropy[: min(seen.emitted, seen.verified + 1)]
                chosen = self.policy.choose(now, sum(met) / len(met))
                self.switches += chosen != now
                now = chosen
            self.cycles[now] += 1
            self.emitted[now] += cycle.emitted
        self.requests += 1

    def report(self, costs: ReplayCosts | None) -> ReplayReport:
        total = sum(self.cycles)
        if not total:
            raise ValueError("the trace holds no verify cycle")
        per_switch = round(total / self.switches, 2) if self.switches else None
        shares = tuple(
            DrafterShare(
                name,
                cycles,
                round(cycles / total, 4),
                round(emitted / cycles, 4) if cycles else None,
            )
            for name, cycles, emitted in zip(_NAMES, self.cycles, self.emitted, strict=True)
        )
        figures = SwitchFigures(self.requests, total, self.switches, per_switch, shares)
        note = "tokens_per_cycle are the recorded drafter's, a batch of one is assumed"
        return ReplayReport(None, None, figures, (note,))


def make_switch(options: ReplayOptions, header: TraceHeader) -> SwitchReplay:
    policy = DrafterSwitch(
        options.number("down", DrafterSwitch.down), options.number("up", DrafterSwitch.up)
    )
    start = _NAMES.index(options.choice("start", _NAMES))
    options.done()
    return SwitchReplay(policy, start)
