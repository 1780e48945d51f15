"""What one cycle came to for one request, read off when its verification is over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sgl_entropy.serving.asked import Asked
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.mode_time import timed
from sgl_entropy.serving.verification import Verification
from sgl_entropy.verify.trace import CycleRecord

# The names of two drafters, by number.
DRAFTERS = ("small", "large")


@dataclass
class CheckCounts:
    """Counts of an entropy mode, of one cycle or of many.

    Attributes:
        checks: positions that were checked; fires: those at which a drafted token was rejected.
        relaxed: tokens that only relaxed acceptance took.
        entropy_sum: nats, of the target at ``entropies`` emitted positions.
    """

    checks: int = 0
    fires: int = 0
    relaxed: int = 0
    entropy_sum: float = 0.0
    entropies: int = 0

    def add(self, more: CheckCounts) -> None:
        self.checks += more.checks
        self.fires += more.fires
        self.relaxed += more.relaxed
        self.entropy_sum += more.entropy_sum
        self.entropies += more.entropies

    @property
    def mean_entropy(self) -> float | None:
        """Nats; None = the entropy of no emitted position was computed."""
        return self.entropy_sum / self.entropies if self.entropies else None


@dataclass(frozen=True)
class DrafterCycle:
    """One cycle as a response shows it to a request that asks (``spec_drafters``).

    Attributes:
        drafter: its name.
        drafted: the drafted tokens that were verified.
        accepted: how many of them were accepted; emitted: tokens that the output got.
        target_entropy: nats, at each emitted position.
    """

    drafter: str
    drafted: list[int]
    accepted: int
    emitted: int
    target_entropy: list[float]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class CycleOutcome(NamedTuple):
    """One request's part of a cycle.

    Attributes:
        drafted: drafted tokens that were verified.
        accepted: of them, those in the output; emitted: tokens that the output got. A request
            that ends within its draft emits fewer tokens than verification accepted.
        depth: how many drafted tokens can be accepted at most.
        checks: what the entropy mode did; None = there is none.
        trace: None = not asked for.
        drafter: the number of the drafter; None = the server has one.
        drafter_cycle: None = not asked for.
    """

    drafted: int
    accepted: int
    emitted: int
    depth: int
    checks: CheckCounts | None = None
    trace: CycleRecord | None = None
    drafter: int | None = None
    drafter_cycle: DrafterCycle | None = None


def outcome(
    cycle: Cycle, index: int, row: list[int], emitted: int, nodes: int, asked: Asked
) -> CycleOutcome:
    """What request ``index`` of a verified batch came to.

    Args:
        row: its accepted nodes as flat numbers, root first, then -1.
        emitted: tokens that its output got.
        nodes: n.
    """
    path = [node for node in row if node != -1]
    accepted = min(emitted, len(path) - 1)
    verified = nodes if cycle.verified is None else cycle.verified[index]
    checks = trace = None
    if cycle.verification is not None:
        checks, trace = _checked(cycle, cycle.verification, index, path, emitted)
    shown = None
    if cycle.drafter is not None and asked.drafters:
        shown = _drafter_cycle(cycle, cycle.drafter, index, path, emitted)
    return CycleOutcome(
        verified - 1, accepted, emitted, len(row) - 1, checks, trace, cycle.drafter, shown
    )


@timed
def _checked(
    cycle: Cycle, verification: Verification, index: int, path: list[int], emitted: int
) -> tuple[CheckCounts, CycleRecord | None]:
    met, asked = path[:emitted], verification.asked[index]
    checked = 0
    if asked.rule is not None:
        for place, node in enumerate(met):
            taken = place + 1 < len(path) or node in verification.fire
            checked += verification.child[node] >= 0 and (taken or not asked.rule.accepted_only)
    fires = [place for place, node in enumerate(met) if node in verification.fire]
    known = [
        nats for node in met if not math.isnan(nats := verification.entropy.get(node, math.nan))
    ]
    counts = CheckCounts(
        checks=int(checked),
        fires=len(fires),
        relaxed=sum(node in verification.relaxed for node in met),
        entropy_sum=sum(known),
        entropies=len(known),
    )
    if not asked.traced:
        return counts, None
    accepted = min(len(path) - 1, emitted)
    fired = fires[0] if fires else None
    return counts, _record(cycle, verification, index, accepted, emitted, counts.checks, fired)


def _record(
    cycle: Cycle,
    verification: Verification,
    index: int,
    accepted: int,
    emitted: int,
    checked: int,
    fired: int | None,
) -> CycleRecord:
    """What a trace says of a verified chain."""
    stats, tree = cycle.nodes, cycle.tree
    assert stats is not None
    assert tree is not None
    path = stats.paths()[index]
    # What fills a chain that ended early has probability 0.
    verified = int(((tree.slots[index, 1:] >= 0) & (path > 0)).sum())
    drafted = tree.nodes - 1
    below = range(index * drafted, index * drafted + verified)
    nodes = range(index * tree.nodes, index * tree.nodes + verified)

    def column(values: Iterable[float]) -> tuple[float, ...]:
        return tuple(round(value, 6) for value in values)

    before = torch.cat([path.new_ones(1), path[:-1]])
    return CycleRecord(
        draft_entropy=column(stats.nats(below) if verified else ()),
        draft_prob=column((path / before.clamp_min(1e-30))[:verified].tolist()),
        overlap=column(verification.overlap[node] for node in nodes),
        target_prob=column(verification.token_prob[node] for node in nodes),
        target_entropy=column(verification.entropy[node] for node in (*nodes, nodes.stop)),
        accepted=accepted,
        emitted=emitted,
        checked=checked,
        fired=fired,
    )


def _drafter_cycle(
    cycle: Cycle, drafter: int, index: int, path: list[int], emitted: int
) -> DrafterCycle:
    tree = cycle.tree
    assert tree is not None
    tokens = tree.tokens.view(-1, tree.nodes)[index]
    return DrafterCycle(
        drafter=DRAFTERS[drafter],
        drafted=tokens[tree.slots[index] >= 0].tolist()[1:],
        accepted=min(len(path) - 1, emitted),
        emitted=emitted,
        target_entropy=[round(nats, 6) for nats in cycle.target_entropies(path[:emitted])],
    )
