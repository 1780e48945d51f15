"""Records, figures and verdicts of runs that are made up, so that every number is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sgl_entropy_bench.http.record import RecordWriter, RequestRecord, read_records
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.judge import metrics, verdict
from sgl_entropy_bench.load.judge.compare import paired, parity
from sgl_entropy_bench.load.judge.measurement import (
    Measurement,
    ScheduleFacts,
    ServerFacts,
    Slo,
    WorkloadFacts,
)


def made(index: int, seconds: float = 1.0, **changes: object) -> RequestRecord:
    """Sent 1 ms after its time, ``index``; 5 tokens in 3 events."""
    at = float(index)
    held: dict[str, object] = {
        "sent": at + 0.001,
        "first": at + 0.2 * seconds,
        "last": at + seconds,
        "chunks": [(at + 0.2 * seconds, 1), (at + 0.6 * seconds, 3), (at + seconds, 5)],
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cycles": 2,
        "emitted": 4,
        "accepted": [1, 1, 0],
        "status": 200,
        "text_hash": "a",
        **changes,
    }
    return RequestRecord(index, f"p{index}", "maths", "measured", at, **held)  # type: ignore[arg-type]


def failed(index: int, error: str = "status 503: busy") -> RequestRecord:
    return RequestRecord(
        index, f"p{index}", "maths", "measured", float(index), sent=index + 0.001, error=error
    )


def test_a_record_survives_its_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    held = [made(1), failed(0), made(2, chunks=[(2.5, None)], rank=1, easd_checks=3)]
    with RecordWriter(path) as writer:
        for record in held:
            writer.write(record)
    assert read_records(path) == [held[1], held[0], held[2]]


def test_a_last_line_that_was_cut_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = made(1).to_json()
    path.write_text(line + "\n" + line[:40])
    assert read_records(path) == [made(1)]
    path.write_text(line[:40] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"records\.jsonl:1"):
        read_records(path)
    path.write_text('{"index": 1, "colour": 2}\n')
    with pytest.raises(ValueError, match="unknown keys colour"):
        read_records(path)


def test_latencies_count_from_the_schedule() -> None:
    late = made(0, sent=0.5)
    assert metrics.e2e(late) == 1.0
    assert metrics.e2e_from_send(late) == 0.5
    assert metrics.ttft(late) == pytest.approx(0.2)
    assert metrics.tpot(late) == pytest.approx(0.2)
    assert metrics.gaps(late) == pytest.approx([0.4, 0.4])
    assert metrics.lag(late) == 0.5


def test_a_failed_request_stays_in_the_percentiles() -> None:
    records = [made(i) for i in range(95)] + [failed(i) for i in range(95, 100)]
    found = metrics.of_all(records, metrics.e2e)
    assert found is not None
    assert (found.p90, found.p99) == (1.0, None)
    assert (found.count, found.failed) == (95, 5)
    summary = metrics.summary(records)
    assert (summary.errors, summary.error_kinds) == (5, {"status 503: busy": 5})


def test_tau_is_pooled_and_not_the_mean_of_ratios() -> None:
    records = [made(0, cycles=1, emitted=5), made(1, cycles=9, emitted=9), made(2, cycles=None)]
    assert metrics.tau(records) == 1.4
    assert metrics.tau([made(0, cycles=None)]) is None
    assert metrics.acceptance_by_position([made(0), made(1)]) == (0.5, 1.0, 0.0)


def test_tokens_are_counted_when_they_came() -> None:
    streamed, whole = made(0), made(0, chunks=[])
    uncounted = made(0, chunks=[(0.2, None), (0.6, None), (1.0, None)])
    assert metrics.tokens_between([streamed], 0.1, 0.7) == 3
    assert metrics.tokens_between([whole], 0.1, 0.7) == 0
    assert metrics.tokens_between([whole], 0.1, 1.0) == 5
    assert metrics.tokens_between([uncounted], 0.0, 1.0) == 5


def test_a_draft_may_be_longer_than_any_known_one() -> None:
    records = [made(0, cycles=2, accepted=[1] * 70), made(1, cycles=2, accepted=[2])]
    assert metrics.acceptance_by_position(records) == (0.75, 1 / 3, *[1.0] * 68)


def test_a_loop_that_took_no_time_has_no_throughput() -> None:
    assert metrics.window([made(0, sent=1.0, last=1.0)]) is None


@pytest.mark.parametrize(
    ("text", "good"), [("e2e=1", 3), ("e2e=0.9", 0), ("ttft=0.3,tpot=0.3", 3), ("tpot=0.1", 0)]
)
def test_goodput(text: str, good: int) -> None:
    records = [made(0), made(1), made(2), failed(3)]
    found = metrics.summary(records, Slo.parse(text)).goodput
    assert found is not None
    assert found.share == good / 4


@pytest.mark.parametrize("text", ["", "e2e", "e2e=0", "e2e=x", "itl=1"])
def test_limits_that_there_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="--slo"):
        Slo.parse(text)


def judged(
    records: list[RequestRecord],
    first_use: list[RequestRecord] | None = None,
    **changes: object,
) -> verdict.Verdict:
    """The verdict of an open loop; ``first_use``: those whose prompts were not sent before."""
    if first_use is not None:
        new = {record.index for record in first_use}
        before = [
            replace(r, index=1000 + r.index, phase="ramp", cached_tokens=0)
            for r in records
            if r.index not in new
        ]
        changed = {record.index: record for record in first_use}
        records = [*before, *(changed.get(record.index, record) for record in records)]
    facts: dict[str, object] = {
        "expected": sum(record.phase == "measured" for record in records),
        "client_cpu": (0.1,),
        **changes,
    }
    work, when = WorkloadFacts("w", 1, "d", ("maths",)), ScheduleFacts("poisson", 0, 0)
    what = Measurement(
        "a", "l", workload=work, schedule=when, server=ServerFacts(), output=Output(), **facts
    )  # type: ignore[arg-type]
    return verdict.verdict(what, records)


def test_a_good_run_is_valid() -> None:
    assert judged([made(i, 1.0 + i % 7 * 0.1) for i in range(100)]).valid


@pytest.mark.parametrize(
    ("records", "changes", "reason"),
    [
        ([made(i) for i in range(99)], {"expected": 100}, "partial: 99 of 100"),
        ([*[made(i) for i in range(99)], failed(99)], {}, "1 of 100 requests failed"),
        ([made(i, sent=i * 1.02) for i in range(100)], {}, "requests a second were sent"),
        ([made(i, sent=i + 0.02 * (i > 97)) for i in range(100)], {}, "p99 of the lag"),
        ([made(i) for i in range(9)], {"client_cpu": (0.1, 0.9)}, "90% of a core"),
        ([made(i, 1 + i / 50) for i in range(100)], {}, "latency rose"),
        ([made(i, 4 - i / 50) for i in range(100)], {}, "latency fell"),
        (
            [made(i) for i in range(9)],
            {"first_use": [made(i, cached_tokens=11) for i in range(9)]},
            "prefix cache",
        ),
    ],
)
def test_why_a_run_is_not_valid(
    records: list[RequestRecord], changes: dict[str, object], reason: str
) -> None:
    reasons = judged(records, **changes).reasons  # type: ignore[arg-type]
    assert reason in "; ".join(reasons)
    assert len(reasons) == (2 if "were sent" in reason else 1)  # a client that falls back is late


def test_repeated_prompts_are_noted() -> None:
    records = [made(i, cached_tokens=5 if i >= 8 else 0) for i in range(10)]
    found = judged(records, first_use=records[:8])
    assert found.valid
    assert found.notes == (
        "2 of 10 requests repeat an earlier prompt; 10% of the prompt tokens were cached",
    )


def test_rates_are_of_the_steady_state_and_not_of_the_drain() -> None:
    """One a second, however long the last ones take."""
    found = metrics.summary([made(i, 50.0) for i in range(11)], Slo(e2e=60.0))
    assert found.request_rate == pytest.approx(1.0)
    assert found.output_tokens_per_s == pytest.approx(5.0)
    assert found.goodput is not None
    assert found.goodput.requests_per_s == pytest.approx(1.0)


def test_hits_that_the_prompts_common_head_explains_are_none() -> None:
    records = [made(i, cached_tokens=9) for i in range(20)]
    assert judged(records, first_use=records).valid


def test_prompts_may_share_their_first_words() -> None:
    """One prompt is short; two longer ones begin alike, which is no sign of a warm cache."""
    records = [made(0, prompt_tokens=8, cached_tokens=0)]
    records += [made(i, prompt_tokens=200, cached_tokens=40) for i in range(1, 9)]
    assert judged(records, first_use=records).valid
    warm = [made(i, prompt_tokens=200, cached_tokens=199) for i in range(1, 9)]
    assert "prefix cache" in "".join(judged([records[0], *warm]).reasons)


def test_a_closed_loop_is_never_late() -> None:
    assert judged([made(i, sent=i + 0.5) for i in range(100)], concurrency=4).valid


def test_two_arms_are_compared_request_by_request() -> None:
    base = [made(i, 1.0 + i % 5) for i in range(100)]
    half = [made(i, 0.5 * (1.0 + i % 5), text_hash="a" if i % 4 else "b") for i in range(100)]
    found = paired(half, base)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.differs
    assert parity(half, base) == 0.75
    assert not paired(base, base).differs  # type: ignore[union-attr]
    textless = [replace(record, text_hash="") for record in base]
    assert parity(textless, textless) is None
    some = [*half[:50], *[failed(i) for i in range(50, 100)]]
    assert paired(some, base).pairs == 50  # type: ignore[union-attr]
