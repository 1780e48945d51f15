"""From prompts to a calibration: decode them, keep what verification saw, fit the thresholds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sgl_entropy import __version__
from sgl_entropy.base.identity import Identity
from sgl_entropy.verify.calibration import (
    Calibration,
    CalibrationSettings,
    CalibrationTexts,
    Percentiles,
    rates_by_percentile,
)
from sgl_entropy.verify.observations import Observations
from sgl_entropy.verify.trace import CycleRecord, RequestTrace, TraceHeader
from sgl_entropy.verify.trace_file import TraceReader, TraceWriter


@dataclass(frozen=True)
class CycleSource:
    """Two models and a way to decode by them, greedily and with ordinary verification.

    Attributes:
        target, drafter: their folders.
        top_n: N of the overlaps.
        depth: of a chain.
        max_new_tokens: of an answer.
        dtype: the plain target's; None = a server measures.
        arithmetic: what computes, and in which numbers: other arithmetic, other entropies.
        measure: a prompt's token ids and its number, from 0 -> its cycles.
    """

    target: Path
    drafter: Path
    top_n: int
    depth: int
    max_new_tokens: int
    dtype: str | None
    arithmetic: str
    measure: Callable[[Sequence[int], int], Sequence[CycleRecord]]


def observe(
    source: CycleSource,
    prompts: Sequence[Sequence[int]],
    record: Path,
    say: Callable[[str], None],
    told: Callable[[int, int], None],
) -> Observations:
    """What verification saw. Prompts that ``record`` holds are not measured again.

    Args:
        record: a trace file, a line a finished prompt: an interrupt loses only the current one.
            It is removed if it holds no cycle when something fails.
        say: called with a line where prompts are there from before.
        told: called with the number of finished prompts, and of all.

    Raises:
        ValueError: ``record`` is of other models or settings, or nothing can be calibrated on.
    """
    header = TraceHeader(
        target=Identity.of(source.target).sha256,
        drafter=Identity.of(source.drafter).sha256,
        draft_tokens=source.depth,
        top_n=source.top_n,
        temperature=0.0,
    )
    requests: list[Sequence[CycleRecord]] = []
    try:
        with TraceWriter(record, header, append=True) as trace:
            finished = {request.rid: request.cycles for request in TraceReader(record)}
            if finished:
                say(f"{len(finished)} prompts are there from before")
            for number, prompt in enumerate(prompts):
                rid = _rid(source, prompt, number)
                if rid not in finished:
                    finished[rid] = tuple(source.measure(prompt, number))
                    trace.add(RequestTrace(rid, None, finished[rid]))
                requests.append(finished[rid])
                told(len(requests), len(prompts))
        return Observations.of(requests, source.top_n)
    except BaseException:
        if record.exists() and not any(request.cycles for request in TraceReader(record)):
            record.unlink()
        raise


def fit(
    seen: Observations,
    source: CycleSource,
    percentiles: Percentiles,
    overlap: float,
    texts: CalibrationTexts,
) -> Calibration:
    """Thresholds at ``percentiles``, the draft stop's table, and what they would do."""
    rule = seen.rule(percentiles.target, percentiles.draft, source.top_n, overlap)
    return Calibration(
        target=Identity.of(source.target),
        drafter=Identity.of(source.drafter),
        rule=rule,
        draft_stop=seen.draft_stop(),
        positions=len(seen),
        texts=texts,
        settings=CalibrationSettings(
            percentiles,
            "server" if source.dtype is None else "offline",
            source.dtype,
            source.depth,
            source.max_new_tokens,
            cycles=len(seen.emitted),
            tokens=int(seen.emitted.sum()),
        ),
        rates=seen.rates(rule),
        by_percentile=rates_by_percentile(seen, rule),
        date=datetime.now(timezone.utc).date().isoformat(),
        version=__version__,
    )


def _rid(source: CycleSource, prompt: Sequence[int], number: int) -> str:
    what = json.dumps([number, source.max_new_tokens, source.arithmetic, list(prompt)]).encode()
    return f"{number}-{hashlib.sha256(what).hexdigest()[:16]}"
