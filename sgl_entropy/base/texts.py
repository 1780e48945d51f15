"""Texts in the forms that data sets come in: rows with turns, conversations or questions, or lines.

A row of a ``.jsonl`` file is an object with one of the keys of ``_READERS``. Any other file is
plain text, one text a line. The file's name decides which it is, never its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Text:
    """One row.

    Attributes:
        prompt: what a user asks: the first human turn, or the whole line.
        whole: prompt and, where the row has one, the first answer.
    """

    prompt: str
    whole: str


def _from_turns(turns: Any) -> Text:
    return Text(_string(turns[0]), "\n\n".join(_string(turn) for turn in turns))


def _from_conversations(turns: Any) -> Text:
    human = next(i for i, turn in enumerate(turns) if turn["from"] in ("human", "user"))
    prompt = _string(turns[human]["value"])
    answer = [_string(turn["value"]) for turn in turns[human + 1 : human + 2]]
    return Text(prompt, "\n\n".join([prompt, *answer]))


def _from_string(text: Any) -> Text:
    return Text(_string(text), text)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_READERS: dict[str, Callable[[Any], Text]] = {
    "turns": _from_turns,
    "conversations": _from_conversations,
    "question": _from_string,
    "text": _from_string,
    "prompt": _from_string,
}


def read_texts(path: Path, most: int | None = None) -> list[Text]:
    """The texts of a file, in its order; empty ones are left out.

    Args:
        most: stop after so many; None = all.

    Raises:
        ValueError: not readable as said above, or nothing in it; names file and line.
        OSError: no such file, or not readable.
    """
    parse = _row if path.suffix in (".jsonl", ".json") else _from_string
    texts: list[Text] = []
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if most is not None and len(texts) >= most:
                    break
                if not line.strip():
                    continue
                try:
                    text = parse(line.strip())
                except (TypeError, KeyError, IndexError, StopIteration, RecursionError):
                    raise ValueError(_misfit(path, number)) from None
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
                if text.prompt.strip():
                    texts.append(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: {error}") from None
    if not texts:
        raise ValueError(f"{path}: holds no text")
    return texts


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The given files; for a folder, its ``.jsonl`` and ``.txt`` files by name.

    Raises:
        ValueError: something does not exist, or a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix in (".jsonl", ".txt"))
            if not inside:
                raise ValueError(f"{path}: a folder without .jsonl or .txt files")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    return files


def _row(line: str) -> Text:
    return text_of_row(json.loads(line))


def text_of_row(row: Any) -> Text:
    """The text of one row of a data set.

    Raises:
        TypeError, KeyError, IndexError, StopIteration: no object, none of the keys, or a value of
            another form.
    """
    key = next(key for key in _READERS if key in row)
    return _READERS[key](row[key])


def _misfit(path: Path, number: int) -> str:
    return (
        f"{path}, line {number}: expected an object with `turns` (list of strings), "
        "`conversations` (list of {from, value}, one of them from a human), `question`, "
        "`text` or `prompt`"
    )
