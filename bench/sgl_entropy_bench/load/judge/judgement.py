"""One pure function from a measurement and its records to its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy_bench.http.record import CUT, RequestRecord
from sgl_entropy_bench.load.judge.compare import AgainstBaseline, BenchmarkSpeed
from sgl_entropy_bench.load.judge.measurement import Measurement
from sgl_entropy_bench.load.judge.metrics import (
    Capacity,
    Figures,
    FullWindow,
    measured_of,
    summary,
    window,
)
from sgl_entropy_bench.load.judge.verdict import Verdict, rates, verdict


@dataclass(frozen=True)
class Result:
    """One arm under one load, judged: an entry of ``results`` in a run's result.json.

    Attributes:
        requests: measured ones that ended, well or not.
        partial: fewer than were planned, or some that were cut off.
        scheduled_qps, achieved_qps: requests a second of the schedule, and as sent.
        figures: None where nothing was measured.
        window: closed loop: tokens a second while all places were taken.
        capacity: where the rate at which the arm saturates was asked for.
        speed, speed_all: one request at a time: by benchmark, and over all.
        against: beside the baseline at the same load.
        key: names what was measured and how; a run of the same key is not measured again.
    """

    measurement: Measurement = field(metadata=FLAT)
    verdict: Verdict = field(metadata=FLAT)
    requests: int
    partial: bool
    scheduled_qps: float | None = None
    achieved_qps: float | None = None
    figures: Figures | None = field(default=None, metadata=FLAT)
    window: FullWindow | None = None
    capacity: Capacity | None = None
    speed: dict[str, BenchmarkSpeed] | None = None
    speed_all: BenchmarkSpeed | None = None
    against: AgainstBaseline | None = None
    key: str | None = None

    @property
    def arm(self) -> str:
        return self.measurement.arm

    @property
    def load(self) -> str:
        return self.measurement.load

    @property
    def valid(self) -> bool:
        return self.verdict.valid

    @property
    def tau(self) -> float | None:
        """Tokens a cycle of the requests themselves, else of the server's counters."""
        own = None if self.figures is None else self.figures.tau
        return own if own is not None else self.measurement.tau_counted_by_server


def judge(measurement: Measurement, records: Sequence[RequestRecord]) -> Result:
    """The verdict and all figures of one measurement; for runs, merged clients and ``rejudge``.

    Args:
        records: all of them, by schedule.
    """
    measured = measured_of(records)
    judged = verdict(measurement, records)
    if not measured:
        return Result(measurement, judged, 0, True)
    opened = measurement.open_loop
    scheduled, achieved = rates(measured)
    return Result(
        measurement,
        judged,
        requests=len(measured),
        partial=len(measured) < measurement.expected or any(r.error == CUT for r in measured),
        scheduled_qps=scheduled if opened else None,
        achieved_qps=achieved,
        figures=summary(measured, measurement.slo),
        window=None if opened else window(records),
    )
