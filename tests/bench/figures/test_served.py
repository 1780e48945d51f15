"""The served figure: its rounds, its means, its order, and that it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sgl_entropy_bench.figures import paired, served
from sgl_entropy_bench.figures.figure_plan import BENCHMARKS, FigurePlan, write_results
from sgl_entropy_bench.figures.windows import TimedAnswer
from sgl_entropy_bench.server.arms import ServeArm
from sgl_entropy_bench.server.launch import Server


def test_served_against_the_fake_server(plan: FigurePlan) -> None:
    data, page = served.measure(plan)
    assert list(data.temperatures) == ["0", "1"]
    for arms in data.temperatures.values():
        assert list(arms) == ["none", "eagle3", "edsd"]
        assert {row.requests for row in arms.values()} == {10}
        none, eagle3, edsd = arms.values()
        assert none.speed_up["value"] == none.acceptance_length["value"] == 1.0
        assert eagle3.acceptance_length["value"] == pytest.approx(3.0, rel=0.15)
        assert eagle3.over_baseline is None
        ratio = edsd.speed_up["value"] / eagle3.speed_up["value"]
        assert edsd.over_baseline.speed["value"] == pytest.approx(ratio, abs=2e-3)
        assert edsd.over_baseline.acceptance_length["low"] is not None
        assert list(edsd.benchmarks) == list(BENCHMARKS)
    assert "## Temperature 1" in page
    assert list((plan.work / "served").glob("*.jsonl")), "not written yet"
    write_results(plan, "served", data, page)
    assert not list((plan.work / "served").glob("*.jsonl"))


def test_served_goes_on_where_it_ended(plan: FigurePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only turns that every arm has taken are kept: here four of them, and one of the fifth."""
    asked: list[tuple[str, str, float]] = []
    most = 4 * 3 + 1
    answer = served.answer

    def counted(server: Server, text: str, limit: int, temperature: float) -> TimedAnswer:
        if limit > paired.WARM_UP_TOKENS:
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append((server.name, text, temperature))
        return answer(server, text, limit, temperature=temperature)

    monkeypatch.setattr(served, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        served.measure(plan)
    begun, most = asked[:12], 1000
    asked.clear()
    data, _ = served.measure(plan)
    assert len(begun) + len(asked) == len({*begun, *asked}) == 3 * 10 * 2
    assert data.temperatures["1"]["edsd"].requests == 10


@pytest.mark.parametrize("arms", [2, 3, 4, 5, 6])
def test_every_arm_comes_first_in_each_benchmark_at_each_temperature(arms: int) -> None:
    for benchmark in range(5):
        for turn in range(2):
            first = [served.first_of(5 * n + benchmark, turn, arms) for n in range(arms)]
            assert sorted(first) == list(range(arms))


def test_the_arms_of_served_are_the_drafters_that_were_named(
    plan: FigurePlan, tmp_path: Path
) -> None:
    """Means are of benchmarks, ratios of what was named first, and both drafters are recorded."""
    one, other = ServeArm("a", "EDSD", plan.edsd), ServeArm("b", "EAGLE3", plan.eagle3)
    chosen = replace(plan, chosen=(one, other))
    assert [arm.name for arm in chosen.arms()] == ["none", "a", "b"]
    assert set(chosen.provenance()["inputs"]) == {"target", "a", "b"}
    for names in ("a, a", "a, target"):
        arms = tuple(replace(one, name=name) for name in names.split(", "))
        with pytest.raises(ValueError, match=f"names of their own, found none, {names}"):
            served.measure(replace(plan, chosen=arms))

    def answers(cycles: int, seconds: Sequence[float]) -> list[TimedAnswer]:
        return [TimedAnswer((1,), cycles, 12, 0, 0, 12, each) for each in seconds]

    rounds = [
        {"none": answers(0, (1, 1, 1, 1, 2)), "a": answers(6, [0.5] * 5), "b": answers(4, [1] * 5)}
    ] * 2
    found = served.summarise(rounds, "a")
    # Speed-ups of 2, 2, 2, 2 and 4: their mean, and not that of the pooled seconds.
    assert found["a"].speed_up["value"] == 2.4
    assert found["a"].acceptance_length["value"] == 2.0
    assert found["b"].over_baseline.acceptance_length["value"] == 1.5
    assert found["b"].over_baseline.speed["value"] == 0.5
    assert found["b"].benchmarks["sum"].speed_up == 2.0
