"""Result folders, read and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.base.typed_json import from_json
from sgl_entropy_bench.http.record import RequestRecord, read_records
from sgl_entropy_bench.load.judge.judgement import Result
from sgl_entropy_bench.load.judge.metrics import measured_of
from sgl_entropy_bench.load.judge.run_result import FILE, FORMAT, RunResult

Key = tuple[str, str]


@dataclass(frozen=True)
class Folder:
    """What one run left behind: its result.json as ``run``, and records by (arm, load)."""

    path: Path
    run: RunResult
    records: dict[Key, list[RequestRecord]]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def result(self, key: Key) -> Result:
        return next(one for one in self.run.results if one.measurement.key == key)

    def records_of(self, result: Result) -> list[RequestRecord]:
        """All records of a result or of a probe."""
        records = self.records.get(result.measurement.key)
        return _records(self.path, result) if records is None else records


def records_file(folder: Path, arm: str, load: str) -> Path:
    """Where the records of one arm at one load are."""
    return folder / f"{arm}-{load}.jsonl"


def read_folder(path: Path) -> Folder:
    """Read a result folder.

    Raises:
        ValueError: result.json or a records file is missing, broken, or not of one run (named).
    """
    file = path / FILE
    try:
        run = read_run(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file}: not there; expected a folder of `sgl-entropy bench`") from None
    records: dict[Key, list[RequestRecord]] = {}
    for result in run.results:
        key = result.measurement.key
        if key in records:
            raise ValueError(f"{file}: holds {key[0]} at {key[1]} twice")
        records[key] = _records(path, result)
    return Folder(path, run, records)


def read_run(folder: Path) -> RunResult:
    """The result.json of ``folder``, without the records.

    Raises:
        ValueError: it is broken (named).
        FileNotFoundError, NotADirectoryError: there is none.
    """
    file = folder / FILE
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a result: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        found = report.get("format") if isinstance(report, dict) else type(report).__name__
        raise ValueError(
            f"{file}: expected a result of format {FORMAT}, found {found}; another version of "
            "sgl-entropy wrote it, which can report it, or measure again"
        )
    del report["format"]
    return from_json(RunResult, report, str(file))


def _records(folder: Path, result: Result) -> list[RequestRecord]:
    arm, load = result.measurement.key
    if Path(arm).name + Path(load).name != arm + load:
        raise ValueError(f"{folder / FILE}: {arm!r} at {load!r} cannot name a file")
    file = records_file(folder, arm, load)
    try:
        records = read_records(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: the records of {arm} at {load} are missing") from None
    except (OSError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: no records: {error}") from None
    count = len(measured_of(records))
    if count != result.requests:
        raise ValueError(
            f"{file}: holds {count} measured requests, {FILE} counts {result.requests}"
        )
    return records


def write_records(folder: Path, key: Key, records: Sequence[RequestRecord]) -> None:
    """Write the records of one arm at one load."""
    lines = "".join(record.to_json() + "\n" for record in records)
    # What UTF-8 cannot hold, half a surrogate pair, JSON can: as an escape.
    records_file(folder, *key).write_bytes(lines.encode(errors="backslashreplace"))
