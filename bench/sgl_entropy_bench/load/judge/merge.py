"""Join the result folders of several clients that shared an open-loop load.

A sum of Poisson streams is a Poisson stream, so N machines that each send under a ``--stream I/N``
of their own are one client. Their records are put on one clock by the times at which their runs
started, so the machines' clocks must agree (NTP); every figure is computed anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sgl_entropy.base.provenance import provenance
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.load.judge import compare, metrics
from sgl_entropy_bench.load.judge.folders import Folder, Json, Key, read_folder

# Clients may differ in these: in who they are, and in what follows from the load they found.
_OWN = ("stream", "processes", "capacity_qps", "capacity_valid")
# Less than this share of the requests measured while all clients were sending: no shared load.
_SHARED = 0.8


def merge(paths: Sequence[Path], out: Path) -> Json:
    """Join the folders of clients that shared a load into the folder ``out``.

    Returns:
        the whole result, as ``out/result.json`` holds it.

    Raises:
        ValueError: folders that are no clients of one load (in what), or that cannot be read.
        OSError: ``out`` cannot be written.
    """
    folders = [read_folder(path) for path in paths]
    _refuse(folders)
    _refuse_out(folders, out)
    first, settings = folders[0].report, [folder.report["settings"] for folder in folders]
    results, records = [], {}
    for result in folders[0].results:
        key = result["arm"], result["load"]
        parts = _joined(folders, key)
        # By schedule: intervals are of batches of neighbours.
        whole = sorted((r for part in parts for r in part), key=lambda r: (r.scheduled, r.index))
        records[key] = whole
        results.append(_result(folders, key, whole, _shared(parts)))
    greedy = any(
        (r.get("against") or {}).get("equal_outputs") is not None
        for folder in folders
        for r in folder.results
    )
    compare.against_baseline(
        results,
        lambda r: [one for one in records[r["arm"], r["load"]] if one.phase == "measured"],
        first["baseline"],
        greedy,
    )
    merged = {
        **first,
        "partial": any(folder.report["partial"] for folder in folders),
        "valid": bool(results) and all(result["valid"] for result in results),
        "settings": {
            **{name: value for name, value in settings[0].items() if name not in _OWN},
            **{n: sum(s[n] for s in settings) for n in ("requests", "ramp")},
            "processes": sum(s.get("processes", 1) for s in settings),
            "stream": "+".join(str(s.get("stream")) for s in settings),
        },
        "results": results,
        "provenance": provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
        "merged": [
            {
                "folder": folder.name,
                **{name: s.get(name) for name in _OWN},
                "provenance": folder.report["provenance"],
            }
            for folder, s in zip(folders, settings, strict=True)
        ],
    }
    _write(merged, records, out)
    return merged


def _refuse(folders: Sequence[Folder]) -> None:
    """Raise ValueError unless these are clients of one load."""
    if len(folders) < 2:
        raise ValueError("merge: expected at least two folders")
    first, facts = folders[0], _facts(folders[0])
    streams: dict[str, Path] = {}
    clients = str(first.report["settings"].get("stream", "")).partition("/")[2]
    if clients.isdigit() and int(clients) != len(folders):
        raise ValueError(f"merge: {len(folders)} folders of clients that are {clients} in all")
    for folder in folders:
        if "merged" in folder.report:
            raise ValueError(f"{folder.path}: merged already; give its own inputs instead")
        theirs = _facts(folder)
        for what in dict.fromkeys([*facts, *theirs]):
            if facts.get(what) != theirs.get(what):
                raise ValueError(
                    f"{first.path} and {folder.path} differ in {what}: "
                    f"{facts.get(what)}, {theirs.get(what)}"
                )
        stream = str(folder.report["settings"].get("stream"))
        if stream in streams:
            raise ValueError(
                f"{streams[stream]} and {folder.path} are both of --stream {stream}: the same "
                "arrivals twice are not two clients"
            )
        streams[stream] = folder.path
        for result in folder.results:
            if "started" not in result:
                raise ValueError(
                    f"{folder.path}: {result['arm']} at {result['load']} measured nothing"
                )
    if first.report["verb"] != "latency":
        raise ValueError(
            f"{first.path}: is of {first.report['verb']}; what can be merged are clients of an "
            "open loop: bench latency --stream I/N"
        )
    if first.report["settings"]["arrivals"] == "trace":
        raise ValueError(f"{first.path}: all clients of a trace have the same arrivals")
    if any(server.get("command") for server in first.report["servers"].values()):
        raise ValueError(f"{first.path}: started servers of its own, which no other client shared")


def _facts(folder: Folder) -> dict[str, Any]:
    """What clients of one load have in common."""
    report = folder.report
    return {
        "verb": report["verb"],
        "arms": folder.arms,
        "loads": folder.loads,
        "measurements": sorted(folder.records),
        "baseline": report["baseline"],
        **{name: value for name, value in report["settings"].items() if name not in _OWN},
        **{
            f"{name} of {arm}": server.get(name)
            for arm, server in report["servers"].items()
            for name in ("api", "version", "dp_size", "arguments", "command")
        },
    }


def _refuse_out(folders: Sequence[Folder], out: Path) -> None:
    if any(out.resolve() == folder.path.resolve() for folder in folders):
        raise ValueError(f"--out {out}: is one of the folders that are merged")
    try:
        held = json.loads((out / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(held, dict) or "merged" not in held:
        raise ValueError(f"--out {out}: holds a measured result; name another folder")


def _joined(folders: Sequence[Folder], key: Key) -> list[list[RequestRecord]]:
    """Each client's records on the clock of the first to start, with distinct indices and
    processes."""
    started = [folder.result(key)["started"] for folder in folders]
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


def _result(
    folders: Sequence[Folder], key: Key, records: Sequence[RequestRecord], shared: float
) -> Json:
    """The figures of one arm at one load, as a run by one client has them."""
    from sgl_entropy_bench.load.judge import verdict
    from sgl_entropy_bench.load.run.worker import Tally

    held = [folder.result(key) for folder in folders]
    measured = [record for record in records if record.phase == "measured"]
    expected = sum(folder.report["settings"]["requests"] for folder in folders)
    cpu = [share for result in held for share in result.get("client_cpu", [])]
    judged = verdict.judge(
        measured,
        [Tally(cpu_s=share, wall_s=1.0) for share in cpu],
        expected=expected,
        open_loop=True,
        first_use=_first_use(records),
    )
    reasons, notes = list(judged.reasons), [n for result in held for n in result.get("notes", [])]
    if shared < _SHARED:
        reasons.append(
            f"only {shared:.0%} of the measured requests came while all clients were sending: "
            "start them together"
        )
    scheduled, achieved = verdict.rates(measured)
    asked = [result.get("asked_qps") for result in held]
    slo = folders[0].report["settings"].get("slo")
    figures = metrics.summary(measured, _slo(slo) if slo else None)
    if figures["tau"] is None and any(r.get("tau_counted_by_server") for r in held):
        notes.append("the server's own count of tau is not known: it holds all clients' requests")
    return {
        "arm": key[0],
        "load": key[1],
        "asked_qps": None if None in asked else sum(asked),
        "valid": not reasons,
        "reasons": reasons,
        "notes": [*dict.fromkeys([*judged.notes, *notes])],
        "partial": len(measured) < expected,
        "interrupted": any(result.get("interrupted") for result in held),
        "scheduled_qps": scheduled,
        "achieved_qps": achieved,
        "lag_p99_s": (figures["lag"] or {}).get("p99"),
        "client_cpu": cpu,
        **figures,
        "tau_counted_by_server": None,
        "started": min(result["started"] for result in held),
        "clients": len(folders),
        "shared_share": shared,
    }


def _first_use(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Requests whose prompt no client had sent before, nor another one while it ran."""
    by_prompt = metrics.by_key(records, lambda r: r.prompt if r.sent is not None else None)
    found = []
    for held in by_prompt.values():
        first, *others = sorted(held, key=lambda r: r.sent or 0.0)
        if first.last is not None and all((r.sent or 0) >= first.last for r in others):
            found.append(first)
    return found


def _shared(parts: Sequence[Sequence[RequestRecord]]) -> float:
    """Share of the measured requests that were scheduled while every client was sending."""
    start = max(min(r.scheduled for r in part) for part in parts)
    end = min(max(r.scheduled for r in part) for part in parts)
    times = [r.scheduled for part in parts for r in part if r.phase == "measured"]
    return sum(start <= time <= end for time in times) / len(times)


def _slo(text: str) -> metrics.Slo:
    """Of what ``str(Slo)`` gives."""
    return metrics.Slo.parse(text.replace(" <= ", "=").replace(" s", "").replace(", ", ","))


def _write(report: Json, records: Mapping[Key, Sequence[RequestRecord]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for (arm, load), held in records.items():
        lines = "".join(record.to_json() + "\n" for record in held)
        # What UTF-8 cannot hold, half a surrogate pair, JSON can: as an escape.
        data = lines.encode(errors="backslashreplace")
        (out / f"{arm}-{load}.jsonl").write_bytes(data)
    partial = out / "result.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(out / "result.json")
