"""One line of JSON for each answer, written as it ends; a later line of the same answer counts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.base.disk import write_whole
from sgl_entropy.base.typed_json import as_json, from_json

Place = tuple[str, str, int]


@dataclass(frozen=True)
class Judgement:
    """The score of one answer.

    Attributes:
        found: what was taken from the answer; empty = nothing of the form that was asked for.
        outcome: how the generated program ended, or why a comparison was not made.
    """

    found: str
    right: bool
    outcome: str = ""


@dataclass(frozen=True)
class ScoredAnswer:
    """One arm's answer to one question, with its score.

    Attributes:
        key: of the settings and the question that it was given under; see ``run``.
        sample: which of the question's.
        text: the whole answer; empty where the request failed.
        found, right, outcome: its ``Judgement``.
        error: why the request failed; empty = it did not.
        finish: the server's reason to end; ``length``: cut by the token limit.
        seconds: from sending to the reply, to four places.
        others: as the load tester's records have them.
    """

    arm: str
    question: str
    sample: int
    key: str
    text: str = ""
    found: str = ""
    right: bool = False
    outcome: str = ""
    error: str = ""
    finish: str = ""
    seconds: float = 0.0
    completion_tokens: int | None = None
    cycles: int | None = None
    emitted: int | None = None
    easd_checks: int | None = None
    easd_fires: int | None = None

    @property
    def place(self) -> Place:
        return self.arm, self.question, self.sample

    @property
    def cut(self) -> bool:
        return self.finish == "length"

    def line(self) -> bytes:
        """JSON, as a line of the file; what is unknown or empty is left out."""
        row = {name: value for name, value in as_json(self).items() if value != ""}
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="backslashreplace") + b"\n"


def read_answers(path: Path) -> dict[Place, ScoredAnswer]:
    """The answers of a file, the last of each place; none where there is no file. A last line that
    was cut short is left out.

    Raises:
        ValueError: any other line that is no answer (named).
        OSError: not readable.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    answers: dict[Place, ScoredAnswer] = {}
    *lines, _cut = text.split("\n")
    for number, line in enumerate(lines, 1):
        try:
            answer = from_json(ScoredAnswer, json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: no answer: {error}") from None
        answers[answer.place] = answer
    return answers


def write_answers(path: Path, answers: Iterable[ScoredAnswer]) -> None:
    """A file of these answers, whole or not at all."""
    write_whole(path, b"".join(answer.line() for answer in answers).decode())


class AnswerWriter:
    """Appends answers to a file from several threads, each whole before the next begins.

    A line that an earlier run left unfinished is taken away first.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def write(self, answer: ScoredAnswer) -> None:
        """Raises OSError when the disk is full; what was written before stays readable."""
        line = answer.line()
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)
