"""Reads and writes trace files, a request at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from sgl_entropy.base.json_file import no_constant
from sgl_entropy.verify.trace import RequestTrace, TraceHeader

T = TypeVar("T")


class TraceReader:
    """A trace file: ``header`` at once, the requests one by one as it is iterated.

    Memory holds only the names of the requests, to notice one that comes twice.

    Raises:
        ValueError: anything that a trace cannot hold; names file, line and cycle.
        OSError: no such file, or not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            first = file.readline()
        if not first:
            raise ValueError(f"{path}: empty; expected the header of a trace")
        self.header = self._parsed(1, first, TraceHeader.from_dict)

    def __iter__(self) -> Iterator[RequestTrace]:
        seen: set[str] = set()
        tokens = self.header.draft_tokens
        with self.path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                request = self._parsed(
                    number, line, lambda raw: RequestTrace.from_dict(raw, tokens)
                )
                if request.rid in seen:
                    raise ValueError(f"{self.path}, line {number}: rid {request.rid} comes twice")
                seen.add(request.rid)
                yield request

    def _parsed(self, number: int, line: bytes, parse: Callable[[Any], T]) -> T:
        try:
            return parse(json.loads(line, parse_constant=no_constant))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            torn = "" if line.endswith(b"\n") else "; the file breaks off here"
            raise ValueError(f"{self.path}, line {number}: not JSON: {error}{torn}") from None
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from None


class TraceWriter:
    """Writes a trace, a whole line at a time: ``with TraceWriter(path, header) as trace``.

    The file appears with its header or not at all. With ``append`` an interrupted file is
    continued: its requests are kept, a last line that broke off is not.

    Args:
        append: continue an existing file, whose header must be the same.

    Raises:
        ValueError: the file exists (without ``append``), has another header, or is no trace.
        OSError: not writable.
    """

    def __init__(self, path: Path, header: TraceHeader, append: bool = False) -> None:
        self.path = path
        self.header = header
        self.rids: set[str] = set()
        if path.exists():
            if not append:
                raise ValueError(f"{path} exists already: continue it, or name another file")
            self._file = self._opened()
        else:
            partial = path.with_name(f"{path.name}.part{os.getpid()}")
            partial.write_bytes(_line(header.to_dict()))
            partial.replace(path)
            self._file = path.open("ab")

    def add(self, request: RequestTrace) -> None:
        """Append one request. Raises ValueError for a rid that the file holds."""
        if request.rid in self.rids:
            raise ValueError(f"{self.path}: rid {request.rid} comes twice")
        self._file.write(_line(request.to_dict(self.header.draft_tokens)))
        self._file.flush()
        self.rids.add(request.rid)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> BinaryIO:
        with self.path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            whole = _whole_lines(file, size)
            if 0 < whole < size:
                file.truncate(whole)
        reader = TraceReader(self.path)
        there, wanted = reader.header.to_dict(), self.header.to_dict()
        if there != wanted:
            differ = sorted(k for k in there | wanted if there.get(k) != wanted.get(k))
            raise ValueError(
                f"{self.path} was recorded otherwise: {', '.join(differ)} differ; name another file"
            )
        self.rids = {request.rid for request in reader}
        return self.path.open("ab")


def _whole_lines(file: BinaryIO, size: int, block: int = 1 << 16) -> int:
    """Bytes up to the end of the last whole line."""
    end = size
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
