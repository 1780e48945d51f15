"""Drafter choice by entropy, replayed: which of two drafters would have drafted each cycle.

Exact for a batch of one: a server chooses by the mean over its batch, and a trace does not say
which requests were together. What the other drafter would have had accepted is not known, so there
is no speed here: the acceptance of the recorded drafter on either side tells where a smaller one
might do.
"""

from __future__ import annotations

from sgl_entropy.verify.policies import DrafterSwitch
from sgl_entropy.verify.replay.ledger import Costs
from sgl_entropy.verify.replay.policy import ReplayOptions, ReplayReport
from sgl_entropy.verify.trace import RequestTrace, TraceHeader

_NAMES = ("small", "large")


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
                # Known when the next chain is drafted: the entropies behind the emitted tokens.
                seen = request.cycles[number - 1]
                met = seen.target_entropy[: min(seen.emitted, seen.verified + 1)]
                chosen = self.policy.choose(now, sum(met) / len(met))
                self.switches += chosen != now
                now = chosen
            self.cycles[now] += 1
            self.emitted[now] += cycle.emitted
        self.requests += 1

    def report(self, costs: Costs | None) -> ReplayReport:
        total = sum(self.cycles)
        if not total:
            raise ValueError("the trace holds no verify cycle")
        figures = {
            "requests": self.requests,
            "cycles": total,
            "switches": self.switches,
            "cycles_per_switch": round(total / self.switches, 2) if self.switches else None,
            "by_drafter": [
                {
                    "drafter": name,
                    "cycles": cycles,
                    "share": round(cycles / total, 4),
                    "tokens_per_cycle": round(emitted / cycles, 4) if cycles else None,
                }
                for name, cycles, emitted in zip(_NAMES, self.cycles, self.emitted, strict=True)
            ],
        }
        notes = ("tokens_per_cycle are the recorded drafter's, a batch of one is assumed",)
        return ReplayReport(figures, notes=notes)


def make_switch(options: ReplayOptions, header: TraceHeader) -> SwitchReplay:
    policy = DrafterSwitch(options.number("down", 0.5), options.number("up", 1.5))
    start = _NAMES.index(options.choice("start", _NAMES))
    options.done()
    return SwitchReplay(policy, start)
