"""Counts of cycles add up, and users find them under the names that they know."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from sgl_entropy.serving.counters import RankTotals, RequestCounters, SpecCounters
from sgl_entropy.serving.outcome import CheckCounts, CycleOutcome, DrafterCycle
from sgl_entropy.serving.prometheus import SpecMetrics
from sgl_entropy.verify.trace import CycleRecord

RECORD = CycleRecord(
    draft_entropy=(0.5,),
    draft_prob=(0.25,),
    overlap=(1.0,),
    target_prob=(0.125,),
    target_entropy=(0.5, 2.0),
    accepted=1,
    emitted=2,
    checked=1,
)
SHOWN = DrafterCycle("large", [7], 1, 2, [0.5, 2.0])
PLAIN = [CycleOutcome(3, 2, 3, 4), CycleOutcome(4, 0, 1, 4), CycleOutcome(4, 4, 4, 4)]


def test_cycles_add_up() -> None:
    counts = SpecCounters()
    for found in PLAIN:
        counts.add(found)
    assert counts.snapshot().to_dict() == {
        "cycles": 3,
        "drafted": 11,
        "emitted": 8,
        "accepted_by_position": [2, 2, 1, 1],
    }


def checked(drafter: int) -> CycleOutcome:
    counts = CheckCounts(checks=2, fires=1, relaxed=1, entropy_sum=3.0, entropies=2)
    return CycleOutcome(2, 1, 2, 2, counts, RECORD, drafter, SHOWN)


def test_a_response_tells_its_cycles_when_it_has_finished() -> None:
    counters = RequestCounters()
    counters.add(checked(0))
    counters.add(checked(1))
    running: dict[str, Any] = {}
    counters.for_response(finished=False).add_to(running)
    assert running == {
        "spec_cycles": 2,
        "spec_drafted": 4,
        "spec_emitted": 4,
        "spec_accepted_by_position": [2, 0],
        "easd_checks": 4,
        "easd_fires": 2,
        "easd_relaxed": 2,
        "easd_target_entropy": 1.5,
        "spec_cycles_by_drafter": {"small": 1, "large": 1},
    }
    # It crosses two processes.
    finished: dict[str, Any] = {}
    pickle.loads(pickle.dumps(counters.for_response(finished=True))).add_to(finished)
    assert finished.pop("spec_trace") == [RECORD.to_dict(2)] * 2
    shown = {
        "drafter": "large",
        "drafted": [7],
        "accepted": 1,
        "emitted": 2,
        "target_entropy": [0.5, 2.0],
    }
    assert finished.pop("spec_drafters") == [shown] * 2
    assert finished == running


def test_the_server_tells_of_modes_and_drafters_only_where_there_are_some() -> None:
    totals = RankTotals()
    totals.counts.add(PLAIN[0])
    assert set(totals.server_info(9.0)) == {"cycles", "drafted", "emitted", "accepted_by_position"}
    switch = totals.begin_switching()
    assert totals.server_info(9.0)["cycles_by_drafter"] == {"small": 0, "large": 0}
    totals.counts.add(checked(1))
    switch.switches, switch.catch_ups, switch.tokens, switch.seconds = 1, 2, 30, 0.5
    info = totals.server_info(0.12345678)
    assert info["cycles_by_drafter"] == {"small": 0, "large": 1}
    assert info["easd_seconds"] == 0.123457
    names = ("drafter_switches", "drafter_catch_ups", "drafter_caught_up_tokens")
    assert [info[name] for name in names] == [1, 2, 30]
    assert info["drafter_catch_up_seconds"] == 0.5
    assert [info[f"easd_{name}"] for name in ("checks", "fires", "relaxed", "target_entropy")] == [
        *(2, 1, 1),
        1.5,
    ]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    import prometheus_client
    from prometheus_client import metrics

    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(
        prometheus_client,
        "Counter",
        lambda *given: metrics.Counter(*given, registry=registry),
    )
    return registry


def test_prometheus_follows_the_totals(registry: Any) -> None:
    totals = RankTotals()
    totals.begin_switching()
    shown = SpecMetrics({"rank": "0"})
    for found in (*PLAIN, checked(1)):
        totals.counts.add(found)
        shown.follow(totals)
    shown.follow(totals)

    def value(name: str, **where: str) -> float | None:
        return registry.get_sample_value(f"sgl_entropy:{name}_total", {"rank": "0", **where})

    assert [value(f"spec_{name}") for name in ("cycles", "drafted_tokens", "emitted_tokens")] == [
        *(4, 13, 10),
    ]
    accepted = [value("spec_accepted_tokens", position=str(at)) for at in (1, 2, 3, 4)]
    assert accepted == totals.counts.accepted_by_position == [3, 2, 1, 1]
    assert value("easd_target_entropy_nats") == 3.0
    assert [value("drafter_cycles", drafter=name) for name in ("small", "large")] == [0, 1]
    assert value("drafter_switches") == 0


def test_without_a_mode_or_a_second_drafter_prometheus_shows_neither(registry: Any) -> None:
    totals = RankTotals()
    totals.counts.add(PLAIN[0])
    SpecMetrics({"rank": "0"}).follow(totals)
    shown = {sample.name for family in registry.collect() for sample in family.samples}
    assert "sgl_entropy:spec_cycles_total" in shown
    assert not any("easd" in name or "drafter" in name for name in shown)
