"""One line of JSON for each request, written when it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Literal

# Warm-up; then before the measured requests, measured, and after them to keep up the load.
Phase = Literal["warmup", "ramp", "measured", "tail"]
# The error of a request that was still running when the run ended; not a fault of the server.
CUT = "cut: the run had ended"


@dataclass
class RequestRecord:
    """What happened to one request. Times are seconds from the start of the run.

    Attributes:
        index: place in the schedule.
        prompt, benchmark: the id of the prompt, and its benchmark.
        scheduled: when it should have been sent; latencies count from here.
        sent: when it was; None = never.
        first: when the first token came; None = it did not.
        last: when it ended, successfully or not; None = it was never sent.
        chunks: [time, tokens so far] of every event with new tokens; tokens are None where the
            route does not count them.
        prompt_tokens, completion_tokens, cached_tokens: as the server says; None = it does not.
        cycles, emitted: draft-verify cycles and the tokens out of them; None = not reported.
        drafted, accepted: drafted tokens, and accepted ones by position.
        easd_checks, easd_fires: of EASD, where the server reports them.
        status: HTTP status; None = no reply.
        error: why it failed; empty = it did not.
        finish: the server's reason to end.
        rank: data-parallel rank, where the server says.
        text_hash: of the whole text, for comparing outputs; empty = none.
        process: which client process.
    """

    index: int
    prompt: str
    benchmark: str
    phase: Phase
    scheduled: float
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    chunks: list[tuple[float, int | None]] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cycles: int | None = None
    emitted: int | None = None
    drafted: int | None = None
    accepted: list[int] | None = None
    easd_checks: int | None = None
    easd_fires: int | None = None
    status: int | None = None
    error: str = ""
    finish: str = ""
    rank: int | None = None
    text_hash: str = ""
    process: int = 0

    @property
    def ok(self) -> bool:
        """It ended successfully."""
        return not self.error and self.last is not None

    def to_json(self) -> str:
        """One line without its end; what is unknown is left out."""
        row = {k: v for k, v in asdict(self).items() if v not in (None, "", [])}
        for name in ("scheduled", "sent", "first", "last"):
            if name in row:
                row[name] = round(row[name], 6)
        if self.chunks:
            row["chunks"] = [
                [round(time, 6)] if tokens is None else [round(time, 6), tokens]
                for time, tokens in self.chunks
            ]
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> RequestRecord:
        """Raises ValueError for a line that is no record."""
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("expected an object")
        unknown = sorted(set(row) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        try:
            row["chunks"] = [(c[0], c[1] if len(c) > 1 else None) for c in row.get("chunks", [])]
            return cls(**row)
        except (TypeError, IndexError) as error:
            raise ValueError(f"not a whole record: {error}") from None


class RecordWriter:
    """Appends records to a file, each whole before the next begins.

    Raises OSError when the disk is full; what was written before stays readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: RequestRecord) -> None:
        # What UTF-8 cannot hold, half a surrogate pair, JSON can: as an escape.
        line = record.to_json().encode(errors="backslashreplace") + b"\n"
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_records(path: Path) -> list[RequestRecord]:
    """The records of a file, by schedule. A last line that was cut short is left out.

    Raises:
        ValueError: any other line that is no record (named).
        OSError: not readable.
    """
    return sorted(_records(path), key=lambda record: (record.scheduled, record.index))


def _records(path: Path) -> Iterator[RequestRecord]:
    text = path.read_text(encoding="utf-8", errors="replace")
    # Not splitlines: a text may hold what Unicode calls a line's end.
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            yield RequestRecord.from_json(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise ValueError(f"{path}:{number}: {error}") from None
