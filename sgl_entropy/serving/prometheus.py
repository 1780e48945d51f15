"""A rank's totals as Prometheus counters."""

from __future__ import annotations

from collections.abc import Mapping

from sgl_entropy.serving.counters import RankTotals, SpecCounters, SwitchCounters
from sgl_entropy.serving.outcome import DRAFTERS, CheckCounts

# field of the totals -> name, and what it counts
_SPEC = {
    "cycles": ("spec_cycles", "Verify cycles, one a request and step."),
    "drafted": ("spec_drafted_tokens", "Drafted tokens verified."),
    "emitted": ("spec_emitted_tokens", "Tokens emitted by verify cycles."),
}
_CHECKS = {
    "checks": ("easd_checks", "Positions that EASD checked."),
    "fires": ("easd_fires", "Drafted tokens that EASD rejected."),
    "relaxed": ("easd_relaxed_tokens", "Drafted tokens that only relaxed acceptance took."),
    "entropy_sum": (
        "easd_target_entropy_nats",
        "The target's entropy, summed over emitted positions.",
    ),
    "entropies": ("easd_target_entropy_positions", "Positions in that sum."),
}
_SWITCH = {
    "switches": ("drafter_switches", "Times that the other drafter took over."),
    "catch_ups": (
        "drafter_catch_ups",
        "Forwards in which the idle drafter read what it had missed.",
    ),
    "tokens": ("drafter_caught_up_tokens", "Rows that it read in them."),
    "seconds": ("drafter_catch_up_seconds", "Time that they took."),
}


class _Total:
    """One counter of Prometheus that follows a growing total."""

    def __init__(self, name: str, help_text: str, labels: Mapping[str, str], *more: str) -> None:
        # Imported late: SGLang sets Prometheus' multiprocess folder first.
        from prometheus_client import Counter

        self._counter = Counter(f"sgl_entropy:{name}", help_text, [*labels, *more])
        self._labels = labels
        self._done: dict[str, float] = {}

    def follow(self, total: float, **where: str) -> None:
        """Add what is new since the last call, also if that is 0: the counter then shows 0."""
        key = ",".join(where.values())
        new = total - self._done.get(key, 0)
        self._counter.labels(**self._labels, **where).inc(max(0, new))
        self._done[key] = total


class SpecMetrics:
    """The counters of one rank; declared at once, shown from the first value on."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        def declared(names: Mapping[str, tuple[str, str]]) -> dict[str, _Total]:
            return {field: _Total(*named, labels) for field, named in names.items()}

        self._spec, self._checks, self._switch = map(declared, (_SPEC, _CHECKS, _SWITCH))
        self._accepted = _Total(
            "spec_accepted_tokens",
            "Accepted draft tokens by position in the draft, from 1.",
            labels,
            "position",
        )
        self._drafters = _Total(
            "drafter_cycles", "Verify cycles by the drafter that drafted them.", labels, "drafter"
        )

    def follow(self, totals: RankTotals) -> None:
        """Bring every counter up to date."""
        counts = totals.counts
        _follow(self._spec, counts)
        for position, accepted in enumerate(counts.accepted_by_position, 1):
            self._accepted.follow(accepted, position=str(position))
        if counts.checks is not None:
            _follow(self._checks, counts.checks)
        for name, cycles in zip(DRAFTERS, counts.by_drafter or (), strict=False):
            self._drafters.follow(cycles, drafter=name)
        if totals.switch is not None:
            _follow(self._switch, totals.switch)


def _follow(
    counters: Mapping[str, _Total], values: SpecCounters | CheckCounts | SwitchCounters
) -> None:
    """The counters of one group, named by the fields of ``values``."""
    for field, counter in counters.items():
        counter.follow(getattr(values, field))
