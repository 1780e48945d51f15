"""Data-parallel ranks and the tally of their draft-verify cycles."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_entropy_bench.fakeserver.wire import Json


@dataclass
class CycleTally:
    """Draft-verify cycles: how many accepted 0, 1, ... drafted tokens, and what they emitted."""

    by_accepted: list[int]
    emitted: int = 0

    def add(self, accepted: int, emitted: int) -> None:
        """Count one cycle."""
        self.by_accepted[accepted] += 1
        self.emitted += emitted

    def to_dict(self) -> Json:
        """The shape of SGLang's ``sgl_entropy_counters``."""
        cycles, depth = sum(self.by_accepted), len(self.by_accepted) - 1
        return {
            "cycles": cycles,
            "drafted": cycles * depth,
            "emitted": self.emitted,
            "accepted_by_position": [sum(self.by_accepted[p + 1 :]) for p in range(depth)],
        }


@dataclass
class Rank:
    """One scheduler: requests in a place (``running``) and waiting for one (``queued``)."""

    index: int
    tally: CycleTally
    running: int = 0
    queued: int = 0

    @property
    def requests(self) -> int:
        """Requests in it, in a place or waiting for one."""
        return self.running + self.queued
