"""What is taken from an answer, and when it is right."""

from __future__ import annotations

from fractions import Fraction

import pytest
from sgl_entropy_bench.quality import finals, latex, numerals, programs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("72", 72), ("1,234.50", Fraction(2469, 2)), ("-$5", -5), ("$-5", -5), ("18 %", 18)),
        *(("3/4", Fraction(3, 4)), ("**18**", 18), ("5.", 5), ("1{,}234", 1234), ("−7", -7)),
        *((".5", Fraction(1, 2)), ("1,2", None), ("1234,567", None), ("3/0", None), ("", None)),
        *(("x", None), ("1 2", None), ("--1", None)),
    ],
)
def test_a_number_alone(text: str, value: Fraction | int | None) -> None:
    assert numerals.number(text) == value


@pytest.mark.parametrize(
    ("text", "last"),
    [
        *(("it is 10-5", "5"), ("it is 10 - 5", "5"), ("so -5.", "-5"), ("(3)-4", "4")),
        *(("$1,200 in all", "$1,200"), ("1,2,3", "3"), ("half, .5", ".5"), ("none", "")),
        *(("costs \\$18\\%", "$18"), ("1,234,567 and 1,2345", "2345")),
    ],
)
def test_the_last_number(text: str, last: str) -> None:
    assert numerals.last_number(text) == last


@pytest.mark.parametrize(
    ("text", "cut", "found"),
    [
        ("3 + 4 = <<3+4=7>>7\n#### 7", False, "7"),
        ("#### 7\nThat took 3 steps.", False, "7"),
        # The mark may be the instruction's, repeated without a number.
        ("so 12 apples\n#### NUMBER", False, "12"),
        ("The total is \\boxed{1{,}250} for 3 days", False, "1,250"),
        ("\\boxed{x = 5}. Check: 5 + 2 = 7", False, "5"),
        ("The answer is 5 apples, for 2 days.", False, "5"),
        ("**Answer:** 3 * 4 = 12", False, "12"),
        ("First answer: 3. No, the answer is 4", False, "4"),
        ("She has 3 and then 9", False, "9"),
        # A number of the working is no answer when the limit cut the rest.
        ("She has 3 and then 9", True, ""),
        ("She has 3.\n#### 3", True, "3"),
        ("", False, ""),
    ],
)
def test_the_final_number(text: str, cut: bool, found: str) -> None:
    assert finals.final_number(text, cut) == found


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{1} or rather \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\\}", "a\\\\"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5$", "5"),
        (r"\boxed $", ""),
        ("none", ""),
    ],
)
def test_the_last_box(text: str, inside: str) -> None:
    assert latex.boxed(text) == inside


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((r"\dfrac12", r"\frac{1}{2}"), ("0.5", r"\tfrac{1}{2}"), ("1/2", ".50"), ("x=5", "5")),
        *((r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\$1,000", "1000"), (r"50\%", "50")),
        *((r"5\text{ cm}^2", "5"), (r"10\mbox{ m}", "10"), (r"90^\circ", "90"), ("5.", "5")),
        *((r"\text{Evelyn}", "evelyn"), (r"\text{(C)}", "C"), (r"1010_2", r"1010_{2}")),
        *((r"\left(3,\frac{\pi}{2}\right)", r"(3, \frac{\pi}2)"), (r"\sqrt3", r"\sqrt{3}")),
        *((r"x \leq 3", r"x\le3"), (r"x \in [1,2]", "[1,2]"), (r"p\! - q", "p-q")),
        *((r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"), ("2.0", "2")),
        (
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            r"\begin{pmatrix}1\\2\end{pmatrix}",
        ),
    ],
)
def test_answers_that_are_written_in_several_ways(one: str, other: str) -> None:
    assert latex.equal(one, other)
    assert latex.equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *((r"\frac{1}{2}", r"\frac{2}{1}"), ("5", "-5"), ("x+1", "1+x"), ("(1,2)", "(2,1)")),
        *(("0.33", r"\frac13"), ("", ""), ("", "0"), (r"\sqrt{8}", r"2\sqrt{2}"), ("A", "a")),
        *(("1", "11"), (r"\frac{1}{0}", r"\frac{1}{0.0}"), ("x^2", "x^{20}")),
    ],
)
def test_answers_that_differ(one: str, other: str) -> None:
    assert not latex.equal(one, other)


def test_the_final_box_or_what_stands_for_it() -> None:
    assert finals.final_box("The answer is $x + 1$.") == "x + 1"
    assert finals.final_box("The answer is 12.") == "12"
    # A sentence is no answer, neither is a number of the working.
    assert finals.final_box("The answer is not easy to see. 3 + 4 = 7") == ""


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


def test_thoughts_are_no_answer() -> None:
    assert finals.without_thoughts("<think>#### 3</think>\n#### 4").strip() == "#### 4"
