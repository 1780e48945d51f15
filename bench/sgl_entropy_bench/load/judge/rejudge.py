"""Judge a run and compare its arms again from the records, by the rules of this version.

A rule that was wrong is mended without measuring anew: the records hold what happened. A verdict
of another version stays in a result until someone asks for this.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sgl_entropy.base.provenance import commit
from sgl_entropy_bench.http.record import RequestRecord, read_records
from sgl_entropy_bench.load.judge import compare, verdict
from sgl_entropy_bench.load.judge.folders import read_folder
from sgl_entropy_bench.load.run.worker import Tally

Json = dict[str, Any]


def judge_folder(path: Path) -> Json:
    """Judge every result of a run by one client, and write its ``result.json`` anew.

    Returns:
        the run's result, ``judged`` naming the commit of the rules.

    Raises:
        ValueError: no such run, or one that was merged, whose parts must be judged instead.
        OSError: it cannot be written.
    """
    folder = read_folder(path)
    report = folder.report
    if any("clients" in result for result in report["results"]):
        raise ValueError(f"{path} is a merged run: judge its parts, then merge them again")
    for probe in report.get("probes", []):
        _again(probe, read_records(path / f"{probe['arm']}-{probe['load']}.jsonl"), None, False)
    settings = report["settings"]
    if report.get("probes") and "capacity_valid" in settings:
        settings["capacity_valid"] = all(probe["valid"] for probe in report["probes"])
    for result in report["results"]:
        records = folder.records[result["arm"], result["load"]]
        _again(result, records, settings["requests"], report["verb"] == "latency")
        if settings.get("capacity_valid") is False:
            result["valid"] = False
            result["reasons"].append(verdict.NO_CAPACITY)
    greedy = "temperature 0" in settings["output"].split(", ")
    compare.against_baseline(
        report["results"],
        lambda result: [
            record
            for record in folder.records[result["arm"], result["load"]]
            if record.phase == "measured"
        ],
        report["baseline"],
        greedy,
    )
    report["valid"] = bool(report["results"]) and all(r["valid"] for r in report["results"])
    report["judged"] = {"commit": commit()}
    partial = path / "result.partial"
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(path / "result.json")
    return report


def _again(
    result: Json, records: list[RequestRecord], expected: int | None, open_loop: bool
) -> None:
    measured = [record for record in records if record.phase == "measured"]
    judged = verdict.judge(
        measured,
        [Tally(cpu_s=share, wall_s=1.0) for share in result.get("client_cpu", [])],
        expected=result["requests"] if expected is None else expected,
        open_loop=open_loop,
        first_use=verdict.first_uses(records),
    )
    kept = [note for note in result.get("notes", []) if note not in judged.notes]
    result |= verdict.as_json(judged)
    result["notes"] = [*judged.notes, *kept]
