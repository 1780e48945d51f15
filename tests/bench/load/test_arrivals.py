"""Arrival schedules: pure, seeded, of the law that they name."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw, arrivals, read_trace, schedule


def gaps(law: str, rate: float = 20.0, count: int = 20_000, **which: object) -> list[float]:
    times = schedule(ArrivalLaw.parse(law), rate, count, **{"seed": 3, **which})  # type: ignore[arg-type]
    return [b - a for a, b in itertools.pairwise([0.0, *times])]


@pytest.mark.parametrize(
    ("law", "variation"), [("poisson", 1.0), ("gamma:0.5", 0.5), ("gamma:3", 3.0), ("constant", 0)]
)
def test_mean_and_variation_of_the_gaps(law: str, variation: float) -> None:
    found = gaps(law)
    error = 4 * max(variation, 0.001) / math.sqrt(len(found))
    assert fmean(found) == pytest.approx(1 / 20, rel=error)
    assert pstdev(found) / fmean(found) == pytest.approx(variation, abs=0.06 * max(variation, 0.01))


def test_poisson_gaps_follow_the_exponential_law() -> None:
    """Kolmogorov-Smirnov at the 0.1 % level: the largest distance from 1 - exp(-rate t)."""
    found = sorted(gaps("poisson"))
    n = len(found)
    distance = max(
        max(abs((i + 1) / n - p), abs(i / n - p))
        for i, p in enumerate(1 - math.exp(-20 * gap) for gap in found)
    )
    assert distance < 1.95 / math.sqrt(n)


def test_the_same_seed_gives_the_same_times_and_a_longer_list_begins_alike() -> None:
    law = ArrivalLaw.parse("poisson")
    assert schedule(law, 5, 100, 1) == schedule(law, 5, 200, 1)[:100]
    assert schedule(law, 5, 100, 1) != schedule(law, 5, 100, 2)


def test_times_do_not_depend_on_the_python_version() -> None:
    """Written down once: a change would break the pairing with earlier results."""
    found = schedule(ArrivalLaw.parse("poisson"), 2.0, 3, 0)
    assert found == pytest.approx(
        [0.5848894609664268, 0.8594399674224056, 1.1804035142710645], abs=1e-9
    )


def test_streams_of_one_seed_are_independent_and_add_up_to_a_poisson_stream() -> None:
    """Counts in slots of one second: variance = mean for the sum, no correlation of the parts."""
    seconds, rate = 4000, 3.0
    counts = []
    for stream in ("0", "1"):
        times = itertools.takewhile(
            lambda time: time < seconds,
            arrivals(ArrivalLaw.parse("poisson"), rate, 9, stream),
        )
        slots = [0] * seconds
        for time in times:
            slots[int(time)] += 1
        counts.append(slots)
    both = [a + b for a, b in zip(*counts, strict=True)]
    assert fmean(both) == pytest.approx(2 * rate, rel=0.03)
    assert pstdev(both) ** 2 / fmean(both) == pytest.approx(1.0, abs=0.09)
    a, b = ([value - fmean(held) for value in held] for held in counts)
    correlation = sum(x * y for x, y in zip(a, b, strict=True)) / (
        pstdev(counts[0]) * pstdev(counts[1]) * seconds
    )
    assert abs(correlation) < 4 / math.sqrt(seconds)


@pytest.mark.parametrize("text", ["", "gamma", "gamma:0", "gamma:x", "gamma:nan", "trace:", "unif"])
def test_laws_that_there_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="--arrivals"):
        ArrivalLaw.parse(text)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_rates_that_there_are_not(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        schedule(ArrivalLaw.parse("constant"), rate, 1, 0)


def test_a_trace_is_replayed_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('10.5\n\n{"timestamp": 11}\n{"scheduled": 12.25, "index": 3}\n')
    law = ArrivalLaw.parse(f"trace:{path}")
    assert schedule(law, 1.0, 3, 0) == [0.0, 0.5, 1.75]
    with pytest.raises(ValueError, match="3 arrivals, 4 are asked"):
        schedule(law, 1.0, 4, 0)


def test_a_runs_own_records_are_replayed_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"scheduled": 2.5}\n{"scheduled": 1}\n{"scheduled": 2}\n')
    assert read_trace(path) == [0.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nx\n", "trace:2: expected a time"),
        ('1\n{"time": 3}\n', "trace:2: expected a time"),
        ("2\n1\n", "trace:2: arrival times must not fall"),
        ("1\nNaN\n", "trace:2: arrival times must not fall"),
        ("1\n", "needs at least two"),
        ("", "needs at least two"),
    ],
)
def test_a_broken_trace_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(path)
