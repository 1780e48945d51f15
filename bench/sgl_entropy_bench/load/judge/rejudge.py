"""Judge a run and compare its arms again from the records, by the rules of this version.

After a rule was corrected, nothing has to be measured again: the records hold what happened. The
verdict of another version stays in a result until someone runs this.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sgl_entropy.base.provenance import commit
from sgl_entropy_bench.load.judge.folders import Folder, read_folder
from sgl_entropy_bench.load.judge.judgement import Result, judge
from sgl_entropy_bench.load.judge.run_result import RunResult, all_valid, compared


def judge_folder(path: Path) -> RunResult:
    """Judge every result of a run by one client, and write its ``result.json`` anew.

    Returns:
        the run's result, ``judged`` naming the commit of the rules.

    Raises:
        ValueError: no such run, or one that was merged, whose parts must be judged instead.
        OSError: it cannot be written.
    """
    folder = read_folder(path)
    run = folder.run
    if run.merged is not None:
        raise ValueError(f"{path} is a merged run: judge its parts, then merge them again")
    probes = tuple(_again(folder, probe, None) for probe in run.probes)
    capacity = run.capacity
    if probes and capacity is not None:
        capacity = replace(capacity, valid=all_valid(probes))
    valid = None if capacity is None else capacity.valid
    judged = [_again(folder, result, valid) for result in run.results]
    results = compared(run.verb, judged, folder.records_of, run.baseline)
    run = replace(
        run,
        capacity=capacity,
        probes=probes,
        results=results,
        valid=all_valid(results),
        judged={"commit": commit()},
    )
    run.write(path)
    return run


def _again(folder: Folder, before: Result, capacity_valid: bool | None) -> Result:
    measurement = replace(before.measurement, capacity_valid=capacity_valid)
    result = judge(measurement, folder.records_of(before))
    notes = result.verdict.notes
    # Notes on what the records cannot show were made during the run.
    kept = tuple(note for note in before.verdict.notes if note not in notes)
    return replace(result, verdict=replace(result.verdict, notes=(*notes, *kept)), key=before.key)
