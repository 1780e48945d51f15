"""When requests arrive: a pure, seeded list of absolute times, made before the run.

The client sleeps to these times and never for a sampled gap, so that a late start of one request
does not push back all that follow. Streams split from one seed are independent, and a sum of
Poisson streams is a Poisson stream: N machines that each take rate / N need no coordinator.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["poisson", "gamma", "constant", "trace"]


@dataclass(frozen=True)
class ArrivalLaw:
    """How gaps between arrivals are distributed.

    Attributes:
        kind: poisson (exponential gaps), gamma, constant, or trace (recorded times).
        variation: coefficient of variation of gamma's gaps: 1 is Poisson, above it is bursty.
        trace: the recorded times in seconds, rising from 0.
    """

    kind: Kind
    variation: float = 1.0
    trace: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> ArrivalLaw:
        """``poisson``, ``gamma:CV``, ``constant`` or ``trace:FILE``.

        Raises:
            ValueError: anything else, a CV that is not positive, or a bad trace.
        """
        kind, _, rest = text.partition(":")
        if kind in ("poisson", "constant") and not rest:
            return cls("poisson" if kind == "poisson" else "constant")
        if kind == "gamma":
            try:
                variation = float(rest)
            except ValueError:
                variation = 0.0
            if not 0 < variation < math.inf:
                raise ValueError(f"--arrivals {text}: expected gamma:CV with a CV above 0")
            return cls("gamma", variation)
        if kind == "trace" and rest:
            return cls("trace", trace=tuple(read_trace(Path(rest).expanduser())))
        raise ValueError(f"--arrivals {text}: expected poisson, gamma:CV, constant or trace:FILE")


def stream_seed(seed: int, *names: object) -> int:
    """The seed of a named stream; different names give independent streams."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def arrivals(law: ArrivalLaw, rate: float, seed: int, stream: str = "0") -> Iterator[float]:
    """Arrival times in seconds from the start of the run, endless except for a trace.

    Args:
        rate: mean arrivals a second; a trace has its own.
        stream: name of one of several independent streams under the same ``seed``.

    Raises:
        ValueError: a rate that is not positive.
    """
    if law.kind == "trace":
        yield from law.trace
        return
    if not 0 < rate < math.inf:
        raise ValueError(f"a rate must be above 0 requests a second, found {rate:g}")
    chance = random.Random(stream_seed(seed, "arrivals", stream))
    time = 0.0
    shape = law.variation**-2
    while True:
        if law.kind == "constant":
            time += 1.0 / rate
        elif law.kind == "gamma":
            time += chance.gammavariate(shape, 1.0 / (shape * rate))
        else:
            # By inversion: random() is the one draw that Python keeps the same over versions.
            time -= math.log1p(-chance.random()) / rate
        yield time


def schedule(law: ArrivalLaw, rate: float, count: int, seed: int, stream: str = "0") -> list[float]:
    """The first ``count`` of ``arrivals``.

    Raises:
        ValueError: as there, or a trace that holds fewer.
    """
    times = list(itertools.islice(arrivals(law, rate, seed, stream), count))
    if len(times) < count:
        raise ValueError(f"the trace holds {len(times)} arrivals, {count} are asked for")
    return times


def read_trace(path: Path) -> list[float]:
    """Recorded arrival times, shifted to start at 0: a number a line, or JSON Lines with
    ``timestamp``, or with ``scheduled``: a run's own records, which may be in any order.

    Raises:
        ValueError: a line that is neither (named), times that fall, or fewer than two.
        OSError: not readable.
    """
    times: list[float] = []
    records = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if isinstance(row, dict):
                records = records or "scheduled" in row
                row = row["timestamp"] if "timestamp" in row else row["scheduled"]
            time = float(row)
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}:{number}: expected a time in seconds, or an object with timestamp"
            ) from None
        if not math.isfinite(time) or (times and not records and time < times[-1]):
            raise ValueError(f"{path}:{number}: arrival times must not fall, found {time:g}")
        times.append(time)
    if len(times) < 2:
        raise ValueError(f"{path}: a trace needs at least two arrivals, found {len(times)}")
    times.sort()
    return [time - times[0] for time in times]
