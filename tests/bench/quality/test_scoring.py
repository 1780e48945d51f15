"""What is taken from an answer, and when it is right."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
from sgl_entropy_bench.quality import finals, mathematics, programs
from sgl_entropy_bench.quality.answers import Judgement
from sgl_entropy_bench.quality.mathematics import MathVerifier, MathVerifyError
from sgl_entropy_bench.quality.tasks import TASKS, Tools


@pytest.fixture(scope="module")
def verifier() -> MathVerifier:
    return MathVerifier()


def gsm8k(verifier: MathVerifier, reference: str, text: str, cut: bool = False) -> Judgement:
    task = TASKS["gsm8k"]
    question = task.read("here", {"question": "?", "answer": f"so\n#### {reference}"}, "")
    return task.judge(question, text, cut, Tools(mathematics=verifier))


@pytest.mark.parametrize(
    ("text", "cut", "value"),
    [
        *(("#### 72", False, "72"), ("#### 1,234.50", False, "1234.5")),
        *(("#### -$5", False, "-5"), ("#### $-5", False, "-5"), ("#### 18 %", False, "18")),
        *(("#### 3/4", False, "0.75"), ("#### 0.75", False, "3/4"), ("#### **18**", False, "18")),
        *(("#### 5.", False, "5"), ("#### 1{,}234", False, "1234"), ("#### −7", False, "-7")),
        *(("#### .5", False, "1/2"), ("#### $1,200 in all", False, "1,200")),
        *(
            ("#### \\$18", False, "18"),
            ("It costs \\$18.", False, "18"),
            ("#### 72.0", False, "72"),
        ),
        ("3 + 4 = <<3+4=7>>7\n#### 7", False, "7"),
        ("#### 7\nThat took 3 steps.", False, "7"),
        # The mark may be the instruction's, repeated without a number.
        ("so 12 apples\n#### NUMBER", False, "12"),
        ("The total is \\boxed{1{,}250} for 3 days", False, "1,250"),
        ("\\boxed{x = 5}. Check: 5 + 2 = 7", False, "5"),
        ("The answer is 5 apples, for 2 days.", False, "5"),
        ("**Answer:** 3 * 4 = 12", False, "12"),
        ("The answer is 3. No, the answer is 4", False, "4"),
        ("She has 3 and then 9", False, "9"),
        ("It is **$1,250.00**.", False, "1250"),
        ("She has 3.\n#### 3", True, "3"),
        ("<think>#### 3</think>\n#### 4", False, "4"),
    ],
)
def test_the_final_number(text: str, cut: bool, value: str, verifier: MathVerifier) -> None:
    judgement = gsm8k(verifier, value, text, cut)
    assert judgement.right, judgement
    assert not gsm8k(verifier, "987", text, cut).right


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        # A number of the working is no answer when the limit cut the rest.
        ("She has 3 and then 9", True),
        ("", False),
        ("no idea", False),
    ],
)
def test_no_number(text: str, cut: bool, verifier: MathVerifier) -> None:
    assert gsm8k(verifier, "9", text, cut) == Judgement("", False)


def math(verifier: MathVerifier, reference: str, text: str) -> Judgement:
    task = TASKS["math500"]
    question = task.read("here", {"problem": "?", "answer": reference}, "")
    return task.judge(question, text, False, Tools(mathematics=verifier))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{\sqrt{2}}{2}"),
        # The last box; several in one list are a set.
        (rf"\boxed{{1}} at first. {'We check it and find an error. ' * 3}So \boxed{{2}}", "2"),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{1} or rather \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{3}", "3"),
        (r"The answer is $x + 1$.", "x + 1"),
        ("The answer is 12.", "12"),
    ],
)
def test_where_the_answer_stands(text: str, inside: str, verifier: MathVerifier) -> None:
    assert math(verifier, inside, text).right


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((r"\dfrac12", r"\frac{1}{2}"), ("0.5", r"\tfrac{1}{2}"), ("1/2", ".50"), ("x=5", "5")),
        *((r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\$1,000", "1000"), (r"50\%", "50")),
        *((r"5\text{ cm}^2", "5"), (r"10\mbox{ m}", "10"), (r"90^\circ", "90")),
        *((r"\text{Evelyn}", "evelyn"), (r"\text{(C)}", "C"), (r"1010_2", r"1010_{2}")),
        *((r"\left(3,\frac{\pi}{2}\right)", r"(3, \frac{\pi}2)"), (r"\sqrt3", r"\sqrt{3}")),
        *((r"x \leq 3", r"x\le3"), (r"x \in [1,2]", "[1,2]"), (r"p\! - q", "p-q")),
        *((r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"), ("2.0", "2"), (r"32,\!348", "32348")),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        # What string rules cannot see.
        *(("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}"), ("6 - 5i", "-5i+6"), ("1,2", "2,1")),
    ],
)
def test_answers_that_are_written_in_several_ways(
    one: str, other: str, verifier: MathVerifier
) -> None:
    assert math(verifier, one, rf"so \boxed{{{other}}}.").right
    assert math(verifier, other, rf"so \boxed{{{one}}}.").right


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((r"\frac{1}{2}", r"\frac{2}{1}"), ("5", "-5"), ("(1,2)", "(2,1)"), ("[1,2]", "(1,2)")),
        *(("0.33", r"\frac13"), ("0", ""), ("A", "B"), (r"\text{Evelyn}", r"\text{Carla}")),
        *(("1", "11"), ("x^2", "x^{20}"), ("x", "y"), ("p-q", "q-p"), (r"\frac{1}{0}", "1")),
    ],
)
def test_answers_that_differ(one: str, other: str, verifier: MathVerifier) -> None:
    assert not math(verifier, one, rf"so \boxed{{{other}}}.").right


def test_the_reference_may_be_a_solution_with_a_box(verifier: MathVerifier) -> None:
    task = TASKS["math500"]
    row = {"problem": "?", "solution": r"As $3 + 4 = 7$, it is $\boxed{\frac{7}{2}}$."}
    question = task.read("here", row, "")
    assert task.judge(question, r"\boxed{3.5}", False, Tools(mathematics=verifier)).right
    with pytest.raises(ValueError, match="expected answer, or a solution"):
        task.read("here", {"problem": "?", "solution": "It is 7."}, "")


@pytest.mark.slow
def test_an_expression_that_never_ends_is_undecided_and_hinders_no_other() -> None:
    hasty, verifier = MathVerifier(limit_s=1.0), MathVerifier()
    for power in ("10^{10^{10}}", "9!!!!!!!!"):
        judgement = math(hasty, "1", rf"\boxed{{{power}}}")
        assert judgement == Judgement("", False, "undecided: not compared within 1 s")
    deep = "(" * 3000 + "1" + ")" * 3000
    assert not math(verifier, "2", rf"\boxed{{{deep}}}").right
    assert math(verifier, "2", r"\boxed{2}").right


def test_without_math_verify_there_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = "import sys\nsys.modules['math_verify'] = None\n"
    worker = tmp_path / "worker.py"
    worker.write_text(
        mathematics.WORKER.read_text().replace("import json\n", f"import json\n{blocked}")
    )
    monkeypatch.setattr(mathematics, "WORKER", worker)
    monkeypatch.setattr(mathematics, "_IDLE", queue.SimpleQueue())
    with pytest.raises(MathVerifyError, match=r"pip install 'sgl-entropy\[quality\]'"):
        MathVerifier()


@pytest.mark.parametrize(
    ("text", "line"),
    [("#### 7\nThat took 3.", "7"), ("#### 1\n#### 2", "2"), ("#### NUMBER", ""), ("7", "")],
)
def test_what_is_marked(text: str, line: str) -> None:
    assert finals.marked(text) == line


@pytest.mark.parametrize(
    ("text", "cut", "found"),
    [
        ("I think.\nAnswer: Paris.", False, "Paris."),
        ("**Answer:** Paris", False, "Paris"),
        ("Answer: a\nfinal answer: b", False, "b"),
        ("Paris", False, "Paris"),
        ("Well,\n\nParis\n", False, "Paris"),
        ("Well, Par", True, ""),
        ("", False, ""),
    ],
)
def test_the_final_line(text: str, cut: bool, found: str) -> None:
    assert finals.final_line(text, cut) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *(
            (" Paris. ", "paris", True),
            ('"New  York"', "new york", True),
            ("1,000", "1000.0", True),
            ("-$5", "−5.00", True),
            ("3/4", "0.75", True),
        ),
        *(("`x`", "x", True), ("Paris", "London", False), ("", "", False), ("10", "1", False)),
    ],
)
def test_the_same_words(one: str, other: str, same: bool) -> None:
    assert finals.same_words(one, other) is same


PROMPT = '''import math

def helper(x):
    return x

def area(r: float) -> float:
    """The area.
    >>> area(0)
    0
    """
'''
TEST = "def check(candidate):\n    assert candidate(0) == 0\n    assert candidate(1) > 3\n"
BODY = "return math.pi * helper(r) ** 2"
WHOLE = f"def area(r):\n    {BODY}\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"Here:\n```python\n{WHOLE}```\nIt works.",
        # The last block that defines it, past an example that does not.
        f"```python\ndef area(r):\n    return 0\n```\nOr:\n```py\n{WHOLE}```\n```\narea(2)\n```",
        # Cut, or the fence forgotten.
        f"```python\n{WHOLE}",
        # A continuation of the prompt, with what a model writes on behind it.
        f"    {BODY}\n\nprint(area(3))\ndef other(:\n",
        # The first indent is lost where an answer is stripped.
        f"r = r\n    {BODY}",
        BODY,
        f"```python\n    {BODY}\n```",
        f"```\n{BODY}\n```",
        # It closes the fence that the prompt opened.
        f"    {BODY}\n```\nThis is how.",
        f"Sure, here it is:\n\n{WHOLE}\nThis returns the area.",
        f"import math\n\n\n{WHOLE}\n\nPI = 3\n",
    ],
)
def test_programs_of_answers_in_every_form(answer: str) -> None:
    source = programs.program(PROMPT, answer, TEST, "area")
    exec(compile(source, "program", "exec"), {})  # its asserts


@pytest.mark.parametrize("answer", ["", "  \n ", "```python\n```"])
def test_no_code_is_no_program(answer: str) -> None:
    assert programs.program(PROMPT, answer, TEST, "area") == ""


def test_a_wrong_program_stays_wrong() -> None:
    source = programs.program(PROMPT, "    return 0\n", TEST, "area")
    with pytest.raises(AssertionError):
        exec(compile(source, "program", "exec"), {})


def test_a_worker_that_died_is_replaced_and_none_outlives_its_parent() -> None:
    verifier = MathVerifier()
    assert verifier.judge(["18"], r"\boxed{18}", True).right
    idle = next(iter(mathematics._ALIVE))
    idle._process.kill()
    assert verifier.judge(["18"], r"\boxed{18}", True).right
    mathematics._end_all()
    assert not mathematics._ALIVE
    assert verifier.judge(["18"], r"\boxed{18}", True).right
