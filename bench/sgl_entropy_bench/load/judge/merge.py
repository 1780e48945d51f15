"""Join the result folders of several clients that shared an open-loop load.

A sum of Poisson streams is a Poisson stream, so N machines that each send under a ``--stream I/N``
of their own are one client. Their records are put on one clock by the times at which their runs
started, so the machines' clocks must agree (NTP); every figure is computed anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgl_entropy.base.provenance import provenance
from sgl_entropy.base.typed_json import as_json
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge.folders import Folder, Key, read_folder, write_records
from sgl_entropy_bench.load.judge.judgement import Result, judge
from sgl_entropy_bench.load.judge.measurement import Measurement
from sgl_entropy_bench.load.judge.metrics import measured_of
from sgl_entropy_bench.load.judge.run_result import (
    FILE,
    MergedClient,
    RunResult,
    all_valid,
    compared,
)


def merge(paths: Sequence[Path], out: Path) -> RunResult:
    """Join the folders of clients that shared a load into the folder ``out``.

    Returns:
        the whole result, as ``out/result.json`` holds it.

    Raises:
        ValueError: folders that are not clients of one load (and why), or that cannot be read.
        OSError: ``out`` cannot be written.
    """
    folders = [read_folder(path) for path in paths]
    _refuse(folders)
    _refuse_out(folders, out)
    results: list[Result] = []
    records: dict[Key, list[RequestRecord]] = {}
    for result in folders[0].run.results:
        key = result.measurement.key
        parts = _joined(folders, key)
        # By schedule: intervals are of batches of neighbours.
        whole = sorted((r for part in parts for r in part), key=lambda r: (r.scheduled, r.index))
        records[key] = whole
        results.append(_result([folder.result(key) for folder in folders], whole, _shared(parts)))
    first = folders[0].run
    done = compared(first.verb, results, lambda r: records[r.measurement.key], first.baseline)
    merged = RunResult(
        verb=first.verb,
        partial=any(folder.run.partial for folder in folders),
        valid=all_valid(done),
        baseline=first.baseline,
        results=done,
        provenance=provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
        merged=tuple(_client(folder) for folder in folders),
    )
    out.mkdir(parents=True, exist_ok=True)
    for key, whole in records.items():
        write_records(out, key, whole)
    merged.write(out)
    return merged


def _client(folder: Folder) -> MergedClient:
    schedule = folder.run.results[0].measurement.schedule
    return MergedClient(folder.name, schedule.stream, schedule.processes, folder.run.provenance)


def _refuse(folders: Sequence[Folder]) -> None:
    """Raise ValueError unless these are clients of one load."""
    if len(folders) < 2:
        raise ValueError("merge: expected at least two folders")
    for folder in folders:
        if folder.run.merged is not None:
            raise ValueError(f"{folder.path}: merged already; give its own inputs instead")
        if not folder.run.results:
            raise ValueError(f"{folder.path}: measured nothing")
        for result in folder.run.results:
            if result.measurement.started is None or not result.requests:
                raise ValueError(f"{folder.path}: {result.arm} at {result.load} measured nothing")
    first, facts = folders[0], _facts(folders[0])
    schedule = first.run.results[0].measurement.schedule
    clients = schedule.stream.partition("/")[2]
    if clients.isdigit() and int(clients) != len(folders):
        raise ValueError(
            f"merge: found {len(folders)} folders, expected those of all {clients} clients"
        )
    streams: dict[str, Path] = {}
    for folder in folders:
        theirs = _facts(folder)
        for what in dict.fromkeys([*facts, *theirs]):
            if facts.get(what) != theirs.get(what):
                raise ValueError(
                    f"{first.path} and {folder.path} differ in {what}: "
                    f"{facts.get(what)}, {theirs.get(what)}"
                )
        stream = folder.run.results[0].measurement.schedule.stream
        if stream in streams:
            raise ValueError(
                f"{streams[stream]} and {folder.path} are both of --stream {stream}: the same "
                "arrivals twice are not two clients"
            )
        streams[stream] = folder.path
    if first.run.verb != "latency":
        raise ValueError(
            f"{first.path}: holds a run of {first.run.verb}; only clients of an open loop can be "
            "merged: bench latency --stream I/N"
        )
    if schedule.arrivals == "trace":
        raise ValueError(f"{first.path}: all clients of a trace have the same arrivals")
    if any(server.command for server in first.run.servers.values()):
        raise ValueError(f"{first.path}: started servers of its own, which no other client shared")


def _facts(folder: Folder) -> dict[str, Any]:
    """What clients of one load have in common, under the names that an error calls it by."""
    run = folder.run
    facts: dict[str, Any] = {"verb": run.verb, "arms": run.arms, "loads": run.loads}
    facts |= {"measurements": sorted(folder.records), "baseline": run.baseline}
    for one in (result.measurement for result in run.results):
        common = {"requests": one.expected, "limits": as_json(one.slo)}
        common |= {"output": as_json(one.output)}
        for part in (one.workload, one.schedule, one.server):
            common |= as_json(part)
        facts |= {
            f"{name} of {one.arm} at {one.load}": value
            for name, value in common.items()
            if name not in ("stream", "processes", "caption")
        }
    return facts


def _refuse_out(folders: Sequence[Folder], out: Path) -> None:
    if any(out.resolve() == folder.path.resolve() for folder in folders):
        raise ValueError(f"--out {out}: is one of the folders that are merged")
    try:
        there = json.loads((out / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(there, dict) or "merged" not in there:
        raise ValueError(f"--out {out}: holds a measured result; name another folder")


def _joined(folders: Sequence[Folder], key: Key) -> list[list[RequestRecord]]:
    """Each client's records on the clock of the first to start, with distinct indices and
    processes."""
    started = [folder.result(key).measurement.started or 0.0 for folder in folders]
    index = process = 0
    parts = []
    for folder, start in zip(folders, started, strict=True):
        shift = start - min(started)
        parts.append([_moved(r, index, process, shift) for r in folder.records[key]])
        # Of all its records, so that a request has one index on every arm.
        everything = [r for records in folder.records.values() for r in records]
        index += 1 + max(r.index for r in everything)
        process += 1 + max(r.process for r in everything)
    return parts


def _moved(record: RequestRecord, index: int, process: int, shift: float) -> RequestRecord:
    def later(time: float | None) -> float | None:
        return None if time is None else time + shift

    return replace(
        record,
        index=record.index + index,
        process=record.process + process,
        scheduled=record.scheduled + shift,
        sent=later(record.sent),
        first=later(record.first),
        last=later(record.last),
        chunks=[(time + shift, tokens) for time, tokens in record.chunks],
    )


def _result(parts: Sequence[Result], records: Sequence[RequestRecord], shared: float) -> Result:
    """One arm at one load, as a run by one client has it."""
    result = judge(_measurement([part.measurement for part in parts], shared), records)
    notes = list(result.verdict.notes) + [note for part in parts for note in part.verdict.notes]
    tau = result.figures.tau if result.figures is not None else None
    if tau is None and any(part.measurement.tau_counted_by_server for part in parts):
        notes.append("the server's own count of tau is not known: it holds all clients' requests")
    return replace(result, verdict=replace(result.verdict, notes=tuple(dict.fromkeys(notes))))


def _measurement(parts: Sequence[Measurement], shared: float) -> Measurement:
    """What one client would have measured."""
    first = parts[0]
    asked = [part.asked_qps for part in parts]
    started = [part.started for part in parts if part.started is not None]
    return replace(
        first,
        expected=sum(part.expected for part in parts),
        schedule=replace(
            first.schedule,
            ramp=sum(part.schedule.ramp for part in parts),
            stream="+".join(part.schedule.stream for part in parts),
            processes=sum(part.schedule.processes for part in parts),
        ),
        asked_qps=None if None in asked else sum(rate or 0.0 for rate in asked),
        started=min(started),
        client_cpu=tuple(share for part in parts for share in part.client_cpu),
        tau_counted_by_server=None,
        cache_emptied=all(part.cache_emptied for part in parts),
        capacity_valid=None,
        clients=len(parts),
        shared_share=shared,
    )


def _shared(parts: Sequence[Sequence[RequestRecord]]) -> float:
    """Share of the measured requests that were scheduled while every client was sending."""
    start = max(min(r.scheduled for r in part) for part in parts)
    end = min(max(r.scheduled for r in part) for part in parts)
    times = [r.scheduled for part in parts for r in measured_of(part)]
    return sum(start <= time <= end for time in times) / len(times)
