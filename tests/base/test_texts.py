"""Every form of text file that the commands take, and those that they must refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.base.texts import Text, read_texts, text_files

ROWS = [
    {"turns": ["one", "two"], "question_id": 1},
    {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "ask"}]},
    {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
    {"question": "why?", "answer": "so"},
    {"text": "plain"},
]


def test_a_row_may_not_be_deep(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1: expected an object with `turns`"):
        read_texts(path)


def test_rows_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    assert read_texts(path) == [
        Text("one", "one\n\ntwo"),
        Text("ask", "ask"),
        Text("ask", "ask\n\nsay"),
        Text("why?", "why?"),
        Text("plain", "plain"),
    ]
    assert len(read_texts(path, 2)) == 2


def test_lines_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text('first\n\n  {"turns": 3}  \n')
    assert [text.prompt for text in read_texts(path)] == ["first", '{"turns": 3}']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"turns": ["a"]}\n{"turns": []}', "line 2: expected an object"),
        ('{"turns": [3]}', "line 1: expected an object"),
        ('{"turns": null}', "line 1: expected an object"),
        ('{"conversations": [{"from": "gpt", "value": "a"}]}', "line 1: expected an object"),
        ('{"conversations": [{"value": "a"}]}', "line 1: expected an object"),
        ('{"answer": "a"}', "line 1: expected an object"),
        ('["turns"]', "line 1: expected an object"),
        ("7", "line 1: expected an object"),
        ('{"turns": ["a"]', "line 1: not JSON"),
        ("", "holds no text"),
        (' \n{"text": "  "}\n', "holds no text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_texts(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_texts(path)


def test_folders_stand_for_their_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    assert [file.name for file in text_files([tmp_path])] == ["a.txt", "b.jsonl"]
    assert text_files([tmp_path / "c.md"]) == [tmp_path / "c.md"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a folder without"):
        text_files([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no such file"):
        text_files([tmp_path / "missing"])
