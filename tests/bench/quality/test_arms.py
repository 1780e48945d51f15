"""Arms of an evaluation, tasks and their rows: every form that is read, and every one refused."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sgl_entropy_bench.quality.eval_arms import parse_eval_arms, read_eval_arms
from sgl_entropy_bench.quality.tasks import PLAIN, TASKS, load_questions, parse_task


def test_arms_on_the_command_line() -> None:
    arms = parse_eval_arms(
        [
            "a=http://h:1,b=http://h:2",
            'c=http://h:1;{"easd": {"target_entropy": 1.0, "overlap": 0}}',
        ]
    )
    assert [arm.name for arm in arms] == ["a", "b", "c"]
    assert arms[2].custom_params == {"easd": {"target_entropy": 1.0, "overlap": 0}}
    assert arms[0].place == arms[2].place != arms[1].place


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a=http://h:1;{"], "is no JSON"),
        (["a=http://h:1;[1]"], "must be an object"),
        (["a=http://h:1;"], "is no JSON"),
        (['a=http://h:1,b=http://h:2;{"easd": true}'], "follow one arm"),
        (['a=http://h:1;{"easd": 1}'], "easd must be true, false or an object, found 1"),
        (["a=http://h:1", "a=http://h:2"], "a name of its own"),
        (["http://h:1"], "expected NAME=URL"),
        (["a=ftp://h"], "expected a server as"),
    ],
)
def test_arms_that_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_eval_arms(texts)


def test_an_arms_file_of_running_servers(tmp_path: Path) -> None:
    file = tmp_path / "arms.toml"
    file.write_text(
        '[[arms]]\nname = "standard"\nurl = "http://h:1"\ncustom_params = { easd = false }\n'
        '[[arms]]\nname = "easd"\nurl = "http://h:1/"\ntemperature = 0.5\n'
        "[arms.custom_params.easd]\ntarget_entropy = 1.5\n"
    )
    standard, easd = read_eval_arms(file)
    assert standard.place == easd.place
    assert (standard.custom_params, standard.temperature) == ({"easd": False}, None)
    assert (easd.custom_params, easd.temperature) == ({"easd": {"target_entropy": 1.5}}, 0.5)
    assert easd.shown() == '{"easd": {"target_entropy": 1.5}}, temperature 0.5'


def test_an_arms_file_of_commands(tmp_path: Path) -> None:
    file = tmp_path / "arms.json"
    table = {"command": "serve {port}", "arms": [{"name": "a"}, {"name": "b", "flags": "-x"}]}
    table["arms"].append({"name": "c", "custom_params": {"easd": True}})  # type: ignore[attr-defined]
    file.write_text(json.dumps(table))
    a, b, c = read_eval_arms(file)
    assert a.place == c.place != b.place
    assert b.server.command == ("serve", "{port}", "-x")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "at least one"),
        ({"arms": [{"name": "a", "url": "http://h:1"}, {"name": "b"}]}, "every arm has a url"),
        ({"command": "x {port}", "arms": [{"name": "a", "url": "http://h:1"}]}, "nothing is start"),
        ({"arms": [{"name": "a", "url": "http://h:1", "flags": "-x"}]}, "unknown keys flags"),
        ({"arms": [{"url": "http://h:1"}]}, "needs a name and a url"),
        ({"arms": [{"name": "a", "url": "http://h:1,b=http://h:2"}]}, "neither a name nor a url"),
        ({"command": "x {port}", "arms": [{"name": "a", "temperature": -1}]}, "from 0, found -1"),
        ({"command": "x {port}", "arms": [{"name": "a", "custom_params": 1}]}, "must be an object"),
        ({"command": "x {port}", "arms": [{"name": "a", "colour": 1}]}, "unknown keys colour"),
        ({"command": "x", "arms": [{"name": "a"}]}, "must hold {port}"),
    ],
)
def test_arms_files_that_are_refused(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "arms.json"
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        read_eval_arms(file)


def test_tasks_by_name_and_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    assert parse_task("gsm8k") == (TASKS["gsm8k"], "hf:openai/gsm8k:test:main")
    assert parse_task(f"math500={file}") == (TASKS["math500"], str(file))
    assert parse_task(str(file)) == (PLAIN, str(file))
    for text in ("gsm9k", "gsm8k=", f"gsm9k={file}", str(tmp_path / "none.jsonl")):
        with pytest.raises(ValueError, match="expected gsm8k, math500, humaneval"):
            parse_task(text)


@pytest.mark.parametrize(
    ("task", "row", "references"),
    [
        ("gsm8k", {"question": "q", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"}, ("1,004",)),
        ("gsm8k", {"turns": ["q"], "reference": ["#### 4"]}, ("4",)),
        ("math500", {"problem": "q", "answer": "\\frac{1}{2}"}, ("\\frac{1}{2}",)),
        ("math500", {"problem": "q", "solution": "so \\boxed{5}"}, ("so \\boxed{5}",)),
        ("file", {"prompt": "q", "answer": 4}, ("4",)),
        (
            "file",
            {"question": "q", "answer": ["Paris", "paris, France"]},
            ("Paris", "paris, France"),
        ),
    ],
)
def test_rows_as_data_sets_have_them(
    task: str, row: dict[str, Any], references: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (question,) = load_questions(TASKS.get(task, PLAIN), str(file), None, 0)
    assert question.references == references
    assert question.text.startswith("q\n\n")
    (bare,) = load_questions(TASKS.get(task, PLAIN), str(file), None, 0, instruction="")
    assert bare.text == "q"


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("gsm8k", {"question": "q"}, "rows.jsonl:2: expected answer or reference, found question"),
        ("gsm8k", {"question": "q", "answer": "none"}, "ends in no number: 'none'"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "expected question or turns"),
        ("math500", {"problem": "q", "solution": "5"}, "a solution with"),
        ("math500", {"problem": "q", "answer": "$ $"}, "a solution with"),
        ("humaneval", {"turns": ["q"], "reference": ["x"]}, "no prompt and no test and no entry"),
        ("humaneval", {"prompt": "p", "test": "t", "entry_point": "a b"}, "is no name: 'a b'"),
        ("file", {"prompt": "q"}, "expected answer, found answer"),
        ("file", {"prompt": "q", "answer": []}, "an empty list"),
        ("file", {"prompt": "q", "answer": True}, "expected answer"),
        ("file", {"text": "q", "answer": "a"}, "expected prompt or question"),
        ("file", [1], "expected a JSON object"),
        ("file", {"prompt": "q", "answer": "a", "id": 1}, "another row has the id 1"),
    ],
)
def test_rows_that_are_refused(task: str, row: Any, message: str, tmp_path: Path) -> None:
    fine = {
        "gsm8k": {"question": "q", "answer": "#### 4"},
        "math500": {"problem": "q", "answer": "4"},
        "humaneval": {"prompt": "p", "test": "t", "entry_point": "f"},
        "file": {"prompt": "q", "answer": "a"},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": 1, **fine[task]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        load_questions(TASKS.get(task, PLAIN), str(file), None, 0)


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for data, message in (
        (b"\n", "holds no row"),
        (b"\xff\n", "no UTF-8"),
        (b"{\n", ":1: expected"),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_questions(PLAIN, str(file), None, 0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Max retries exceeded\nwith url"),
            "the Hugging Face Hub cannot be reached",
        ),
        (FileNotFoundError("Dataset 'a/b' doesn't exist"), "Dataset 'a/b' doesn't exist"),
        (ValueError('Unknown split "x".\nShould be one of'), 'Unknown split "x".'),
    ],
)
def test_a_data_set_that_cannot_be_fetched_is_told_in_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"^hf:a/b:x: ") as told:
        load_questions(PLAIN, "hf:a/b:x", None, 0)
    assert f"{told.value}" == (
        f"hf:a/b:x: {message}; give a JSON Lines file instead, as --task NAME=FILE"
    )
    assert not caplog.records


def test_a_part_of_the_questions_is_random_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "q{i}", "answer": "a"}}\n' for i in range(50)))
    few = load_questions(PLAIN, str(file), 10, seed=3)
    more = load_questions(PLAIN, str(file), 20, seed=3)
    assert more[:10] == few
    assert [q.id for q in few] != [str(i) for i in range(1, 11)]
    assert load_questions(PLAIN, str(file), 10, seed=4) != few
    assert len(load_questions(PLAIN, str(file), None, 0)) == 50
