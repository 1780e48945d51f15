"""The tasks: how a row becomes a question, and when an answer to it is right."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sgl_entropy_bench.load.schedule.arrivals import stream_seed
from sgl_entropy_bench.quality import finals, programs
from sgl_entropy_bench.quality.answers import Judgement, ScoredAnswer
from sgl_entropy_bench.quality.mathematics import MathVerifier
from sgl_entropy_bench.quality.rows import Row, read_rows
from sgl_entropy_bench.quality.sandbox import Sandbox


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: the user's message.
        plain: what a route without a chat template is sent.
        references: what is right; any of them.
        parts: of a programming task: prompt, test, entry_point.
    """

    id: str
    text: str
    plain: str
    references: tuple[str, ...]
    parts: tuple[str, str, str] = ("", "", "")

    @property
    def digest(self) -> str:
        """Of all that decides the score."""
        content = "\0".join([self.text, self.plain, *self.references, *self.parts])
        return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:12]


@dataclass(frozen=True)
class Tools:
    """What judging needs besides the answer's text; None where the task does not need it."""

    sandbox: Sandbox | None = None
    mathematics: MathVerifier | None = None

    @property
    def isolation(self) -> str | None:
        """What programs run in, for captions."""
        return self.sandbox.isolation if self.sandbox else None

    @property
    def scoring(self) -> str | None:
        """What compares mathematics, with its version."""
        return self.mathematics.version if self.mathematics else None


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        read: (where, row, instruction) -> question without its id.
        judge: (question, answer, whether the token limit cut it, tools) -> judgement.
        instruction: follows the question, a blank line between; of a programming task: precedes.
        hub: where the data set is when no file is named.
        max_tokens: of an answer, unless told otherwise.
        runs_code, compares_mathematics: which tools it needs.
    """

    name: str
    read: Callable[[str, Row, str], Question]
    judge: Callable[[Question, str, bool, Tools], Judgement]
    instruction: str
    hub: str = ""
    max_tokens: int = 512
    runs_code: bool = False
    compares_mathematics: bool = False

    def scored(self, answer: ScoredAnswer, question: Question, tools: Tools) -> ScoredAnswer:
        """An answer to that question with its score. Raises SandboxError, MathVerifyError."""
        return replace(answer, **asdict(self.judge(question, answer.text, answer.cut, tools)))


def _field(where: str, row: Row, *names: str) -> str:
    """The first of ``names`` that a row has; of a list, its first text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, str) and value.strip():
            return value
    has = ", ".join(sorted(map(str, row))) or "nothing"
    raise ValueError(f"{where}: expected {' or '.join(names)}, found {has}")


def _asked(question: str, instruction: str) -> str:
    return f"{question.strip()}\n\n{instruction}" if instruction else question.strip()


def _read_gsm8k(where: str, row: Row, instruction: str) -> Question:
    question = _asked(_field(where, row, "question", "turns"), instruction)
    written = _field(where, row, "answer", "reference")
    final = finals.marked(written) or written.strip()
    if not any(sign.isdigit() for sign in final):
        raise ValueError(f"{where}: the reference answer ends in no number: {written[-80:]!r}")
    return Question("", question, question, (final,))


def _judge_number(question: Question, text: str, cut: bool, tools: Tools) -> Judgement:
    """Behind the last ``####``, else wherever math-verify looks for it."""
    assert tools.mathematics is not None
    text = finals.without_thoughts(text)
    final = finals.marked(text)
    return tools.mathematics.judge(question.references, final or text, cut and not final)


def _read_math(where: str, row: Row, instruction: str) -> Question:
    question = _asked(_field(where, row, "problem", "question"), instruction)
    if isinstance(row.get("answer"), (str, int, float)):
        reference = _field(where, row, "answer").strip()
    else:
        reference = _field(where, row, "answer", "solution")
        reference *= "\\boxed" in reference or "\\fbox" in reference
    if not any(sign.isalnum() for sign in reference):
        raise ValueError(f"{where}: expected answer, or a solution with \\boxed{{}}")
    return Question("", question, question, (reference,))


def _judge_math(question: Question, text: str, cut: bool, tools: Tools) -> Judgement:
    assert tools.mathematics is not None
    references = [
        one if "\\boxed" in one or "\\fbox" in one else f"\\boxed{{{one.rstrip('.')}}}"
        for one in question.references
    ]
    return tools.mathematics.judge(references, finals.without_thoughts(text), cut)


def _read_program(where: str, row: Row, instruction: str) -> Question:
    missing = [name for name in ("prompt", "test", "entry_point") if name not in row]
    if missing:
        raise ValueError(
            f"{where}: a programming task needs prompt, test and entry_point, and this row has no "
            f"{' and no '.join(missing)}: without tests nothing can be scored"
        )
    prompt, test, entry = (
        _field(where, row, "prompt"),
        _field(where, row, "test"),
        _field(where, row, "entry_point"),
    )
    if not entry.isidentifier():
        raise ValueError(f"{where}: entry_point is no name: {entry!r}")
    fenced = f"```python\n{prompt.rstrip()}\n```"
    text = f"{instruction}\n\n{fenced}" if instruction else prompt
    return Question("", text, prompt, (), (prompt, test, entry))


def _judge_program(question: Question, text: str, _: bool, tools: Tools) -> Judgement:
    assert tools.sandbox is not None
    prompt, test, entry = question.parts
    source = programs.program(prompt, finals.without_thoughts(text), test, entry)
    if not source:
        return Judgement("", False, "no code")
    verdict = tools.sandbox.run(source)
    code = programs.code_of(finals.without_thoughts(text), entry)
    return Judgement(code, verdict.passed, verdict.shown())


def _read_plain(where: str, row: Row, instruction: str) -> Question:
    question = _asked(_field(where, row, "prompt", "question", "problem", "turns"), instruction)
    answer: Any = row.get("answer", row.get("reference"))
    several = answer if isinstance(answer, (list, tuple)) else [answer]
    references = tuple(_field(where, {"answer": one}, "answer") for one in several)
    if not references:
        raise ValueError(f"{where}: expected an answer, found an empty list")
    return Question("", question, question, references)


def _judge_plain(question: Question, text: str, cut: bool, _: Tools) -> Judgement:
    final = finals.final_line(finals.without_thoughts(text), cut)
    return Judgement(final, any(finals.same_words(final, one) for one in question.references))


TASKS = {
    "gsm8k": Task(
        "gsm8k",
        _read_gsm8k,
        _judge_number,
        "Solve this step by step. End with one line that holds nothing but the final answer, a "
        "plain number, in the form\n#### NUMBER",
        "hf:openai/gsm8k:test:main",
        compares_mathematics=True,
    ),
    "math500": Task(
        "math500",
        _read_math,
        _judge_math,
        "Solve this step by step and put the final answer in \\boxed{}.",
        "hf:HuggingFaceH4/MATH-500:test",
        1024,
        compares_mathematics=True,
    ),
    "humaneval": Task(
        "humaneval",
        _read_program,
        _judge_program,
        "Complete this Python function. Answer with the whole function, and what it imports, in "
        "one block of code.",
        "hf:openai/openai_humaneval:test",
        runs_code=True,
    ),
}
PLAIN = Task("file", _read_plain, _judge_plain, "End with a line of the form\nAnswer: YOUR ANSWER")


def parse_task(text: str) -> tuple[Task, str]:
    """``gsm8k``, ``gsm8k=SOURCE`` or ``FILE`` -> (task, where its rows are).

    Raises:
        ValueError: neither a known task nor a file.
    """
    name, equals, source = text.partition("=")
    if name in TASKS and (source or not equals):
        return TASKS[name], source or TASKS[name].hub
    if text.startswith("hf:") or Path(text).expanduser().is_file():
        return PLAIN, text
    raise ValueError(
        f"--task {text}: expected {', '.join(TASKS)}, one of them as NAME=FILE, or a file of rows "
        "with prompt and answer"
    )


def load_questions(
    task: Task, source: str, limit: int | None, seed: int, instruction: str | None = None
) -> tuple[Question, ...]:
    """All questions of a source in a random order, or the first ``limit`` of that order: a run
    that is cut short has then asked a random part of them.

    Args:
        instruction: instead of the task's own; empty = none.

    Raises:
        ValueError: a row that the task cannot read (named), or an id twice.
        OSError: not readable.
    """
    text = task.instruction if instruction is None else instruction
    questions: dict[str, Question] = {}
    for count, (where, row) in enumerate(read_rows(source), 1):
        names = ("id", "task_id", "unique_id", "question_id")
        key = str(next((row[name] for name in names if row.get(name) is not None), count))
        if key in questions:
            raise ValueError(f"{where}: another row has the id {key}")
        questions[key] = replace(task.read(where, row, text), id=key)
    shuffled = list(questions.values())
    random.Random(stream_seed(seed, "questions")).shuffle(shuffled)
    return tuple(shuffled[:limit])
