"""What two drafters did, counted: cycles of each, changes between them, and what those cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NAMES = ("small", "large")
_COUNTS = ("switches", "catch_ups", "tokens", "seconds")


@dataclass
class SwitchCounters:
    """Counts of a rank, or of a request (of which only ``cycles`` are known).

    Attributes:
        cycles: verify cycles by the drafter that drafted them, small and large.
        switches: times that the other drafter took over.
        catch_ups: forwards in which the idle drafter read what it had missed: at a switch, for
            requests that ended, and when too much had been kept.
        tokens: rows that it read; seconds: that this took.
    """

    cycles: list[int] = field(default_factory=lambda: [0, 0])
    switches: int = 0
    catch_ups: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "cycles_by_drafter": dict(zip(NAMES, self.cycles, strict=True)),
            "drafter_switches": self.switches,
            "drafter_catch_ups": self.catch_ups,
            "drafter_caught_up_tokens": self.tokens,
            "drafter_catch_up_seconds": self.seconds,
        }


def create(labels: list[str]) -> dict[str, Any]:
    """The Prometheus counters, by field of ``SwitchCounters``."""
    from prometheus_client import Counter

    return {
        "drafter_cycles": Counter(
            "sgl_entropy:drafter_cycles",
            "Verify cycles by the drafter that drafted them.",
            [*labels, "drafter"],
        ),
        "switches": Counter(
            "sgl_entropy:drafter_switches", "Times that the other drafter took over.", labels
        ),
        "catch_ups": Counter(
            "sgl_entropy:drafter_catch_ups",
            "Forwards in which the idle drafter read what it had missed.",
            labels,
        ),
        "tokens": Counter(
            "sgl_entropy:drafter_caught_up_tokens", "Rows that it read in them.", labels
        ),
        "seconds": Counter("sgl_entropy:drafter_catch_up_seconds", "Time that they took.", labels),
    }


def export(
    metrics: dict[str, Any], labels: dict[str, str], now: SwitchCounters, done: SwitchCounters
) -> None:
    """Add to Prometheus what is new in ``now`` since ``done``, which becomes equal to it."""
    for number, name in enumerate(NAMES):
        where = {**labels, "drafter": name}
        metrics["drafter_cycles"].labels(**where).inc(now.cycles[number] - done.cycles[number])
        done.cycles[number] = now.cycles[number]
    for name in _COUNTS:
        # Also for zero, so that what never happened shows as 0, not as absent.
        metrics[name].labels(**labels).inc(getattr(now, name) - getattr(done, name))
        setattr(done, name, getattr(now, name))
