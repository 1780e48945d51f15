"""Result folders, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy_bench.http.record import RequestRecord, read_records

Json = dict[str, Any]
Key = tuple[str, str]
FORMAT = 1
_SHAPE: dict[str, type] = {
    "verb": str, "partial": bool, "valid": bool, "baseline": str, "settings": dict,
    "servers": dict, "results": list, "provenance": dict,
}  # fmt: skip
_SETTINGS = (
    "workload",
    "prompts",
    "prompts_digest",
    "benchmarks",
    "output",
    "arrivals",
    "requests",
    "ramp",
    "seed",
)
_RESULT: dict[str, type] = {
    "arm": str, "load": str, "valid": bool, "reasons": list, "requests": int,
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """What one run left behind: ``report`` is its result.json; records by (arm, load)."""

    path: Path
    report: Json
    records: dict[Key, list[RequestRecord]]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def results(self) -> list[Json]:
        found: list[Json] = self.report["results"]
        return found

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(r["arm"] for r in self.results))

    @property
    def loads(self) -> list[str]:
        return list(dict.fromkeys(r["load"] for r in self.results))

    def result(self, key: Key) -> Json:
        return next(r for r in self.results if (r["arm"], r["load"]) == key)


def read_folder(path: Path) -> Folder:
    """Read a result folder.

    Raises:
        ValueError: result.json or a records file is missing, broken, or not of one run (named).
    """
    file = path / "result.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file}: not there; expected a folder of `sgl-entropy bench`") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a result: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        found = report.get("format") if isinstance(report, dict) else type(report).__name__
        raise ValueError(f"{file}: expected a result of format {FORMAT}, found {found}")
    _check_shape(file, "the result", report, _SHAPE)
    missing = [name for name in _SETTINGS if name not in report["settings"]]
    if missing:
        raise ValueError(f"{file}: its settings lack {', '.join(missing)}")
    records: dict[Key, list[RequestRecord]] = {}
    for result in report["results"]:
        _check_shape(file, "a result", result, _RESULT)
        key = result["arm"], result["load"]
        if key in records:
            raise ValueError(f"{file}: holds {key[0]} at {key[1]} twice")
        records[key] = _records(path, result)
    return Folder(path, report, records)


def _check_shape(file: Path, what: str, held: Any, shape: Mapping[str, type]) -> None:
    for name, kind in shape.items():
        if not isinstance(held, dict) or not isinstance(held.get(name), kind):
            raise ValueError(f"{file}: {what} has no {name} of type {kind.__name__}")


def _records(folder: Path, result: Json) -> list[RequestRecord]:
    arm, load = result["arm"], result["load"]
    if Path(arm).name + Path(load).name != arm + load:
        raise ValueError(f"{folder / 'result.json'}: {arm!r} at {load!r} cannot name a file")
    file = folder / f"{arm}-{load}.jsonl"
    try:
        records = read_records(file)
    except FileNotFoundError:
        raise ValueError(f"{file}: the records of {arm} at {load} are missing") from None
    except (OSError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: no records: {error}") from None
    count = sum(record.phase == "measured" for record in records)
    if count != result["requests"]:
        raise ValueError(
            f"{file}: holds {count} measured requests, result.json counts {result['requests']}"
        )
    return records
