"""Weighted counters of speculation, of one request and of one rank (a scheduler process).

SGLang's gauges hold the mean of the last interval and cannot be added up. These count cycles,
drafted tokens, accepted tokens by position and emitted tokens, so that any pooled ratio
(acceptance length = emitted / cycles) can be formed over any requests, ranks and times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sgl_entropy.serving.meta_info import EasdMeta, RequestMeta, SpecMeta
from sgl_entropy.serving.outcome import DRAFTERS, CheckCounts, CycleOutcome, DrafterCycle
from sgl_entropy.verify.trace import CycleRecord


@dataclass
class SpecCounters:
    """Counts over verify cycles.

    Attributes:
        accepted_by_position: entry p: cycles that accepted drafted token p + 1.
        checks: None = no entropy mode was met.
        by_drafter: cycles by the number of the drafter; None = one drafter is served.
    """

    cycles: int = 0
    drafted: int = 0
    emitted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    checks: CheckCounts | None = None
    by_drafter: list[int] | None = None

    def add(self, outcome: CycleOutcome) -> None:
        """Count one cycle of one request."""
        self.cycles += 1
        self.drafted += outcome.drafted
        self.emitted += outcome.emitted
        missing = outcome.depth - len(self.accepted_by_position)
        if missing > 0:
            self.accepted_by_position.extend([0] * missing)
        for position in range(outcome.accepted):
            self.accepted_by_position[position] += 1
        if outcome.checks is not None:
            if self.checks is None:
                self.checks = CheckCounts()
            self.checks.add(outcome.checks)
        if outcome.drafter is not None:
            if self.by_drafter is None:
                self.by_drafter = [0] * len(DRAFTERS)
            self.by_drafter[outcome.drafter] += 1

    def snapshot(self) -> SpecMeta:
        """The counts as they are now."""
        checks, by_drafter = self.checks, self.by_drafter
        return SpecMeta(
            self.cycles,
            self.drafted,
            self.emitted,
            tuple(self.accepted_by_position),
            None
            if checks is None
            else EasdMeta(checks.checks, checks.fires, checks.relaxed, checks.mean_entropy),
            None if by_drafter is None else dict(zip(DRAFTERS, by_drafter, strict=True)),
        )


@dataclass
class RequestCounters:
    """One request's counts, and its single cycles if it asks for them.

    Attributes:
        trace, drafters: empty if it does not ask for them.
    """

    counts: SpecCounters = field(default_factory=SpecCounters)
    trace: list[CycleRecord] = field(default_factory=list)
    drafters: list[DrafterCycle] = field(default_factory=list)

    def add(self, outcome: CycleOutcome) -> None:
        """Count one cycle."""
        self.counts.add(outcome)
        if outcome.trace is not None:
            self.trace.append(outcome.trace)
        if outcome.drafter_cycle is not None:
            self.drafters.append(outcome.drafter_cycle)

    def for_response(self, finished: bool) -> RequestMeta:
        """What its response says; single cycles are shown when it has finished."""
        return RequestMeta(
            self.counts.snapshot(),
            tuple(self.trace) if finished else (),
            tuple(self.drafters) if finished else (),
        )


@dataclass
class SwitchCounters:
    """What changing between two drafters cost a rank.

    Attributes:
        switches: times that the other drafter took over.
        catch_ups: forwards in which the idle drafter read what it had missed: at a switch, for
            requests that ended, and when too much had been kept.
        tokens: rows that it read; seconds: the time that this took.
    """

    switches: int = 0
    catch_ups: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class RankTotals:
    """Counts of a rank since it started; ``switch`` is None if one drafter is served."""

    counts: SpecCounters = field(default_factory=SpecCounters)
    switch: SwitchCounters | None = None

    def begin_switching(self) -> SwitchCounters:
        """Count the changes between two drafters from now on, in what is returned."""
        self.counts.by_drafter = [0] * len(DRAFTERS)
        self.switch = SwitchCounters()
        return self.switch

    def server_info(self, mode_seconds: float) -> dict[str, Any]:
        """As ``/get_server_info`` shows them.

        Args:
            mode_seconds: time in the entropy mode's own code, shown if a mode was met.
        """
        out = self.counts.snapshot().to_dict()
        if self.switch is not None:
            out["drafter_switches"] = self.switch.switches
            out["drafter_catch_ups"] = self.switch.catch_ups
            out["drafter_caught_up_tokens"] = self.switch.tokens
            out["drafter_catch_up_seconds"] = self.switch.seconds
        if self.counts.checks is not None:
            out["easd_seconds"] = round(mode_seconds, 6)
        return out
