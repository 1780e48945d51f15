"""Where an answer says what it comes to: one rule a form of task."""

from __future__ import annotations

import re
import unicodedata

from sgl_entropy_bench.quality.latex import boxed
from sgl_entropy_bench.quality.numerals import first_number, last_number, number

_SAID = re.compile(r"\banswer\b\**(?:\s+is\b)?\s*[:=]?\**", re.IGNORECASE)
_LINE = re.compile(r"^[\s>*_#]*(?:final\s+)?answer\**\s*:\**(.*)$", re.IGNORECASE | re.MULTILINE)


def without_thoughts(text: str) -> str:
    """What follows a reasoning model's last ``</think>``."""
    return text.rpartition("</think>")[2]


def final_number(text: str, cut: bool = False) -> str:
    """The number that an answer comes to; empty = none.

    In this order: behind the last ``####``, in the last box, behind the last "answer is" or
    "answer:", the last number at all. The last does not count in an answer that was ``cut`` by
    its token limit: the number there is one of the working.
    """
    _, marked, behind = text.rpartition("####")
    if marked and (found := first_number(behind.strip().partition("\n")[0])):
        return found
    if found := last_number(boxed(text)):
        return found
    if places := [match.end() for match in _SAID.finditer(text)]:
        line = text[places[-1] :].strip().partition("\n")[0]
        # "the answer is 3 * 4 = 12": what a chain of equations comes to.
        if found := last_number(line) if "=" in line else first_number(line):
            return found
    return "" if cut else last_number(text)


def final_box(text: str) -> str:
    """What the last box holds, else the formula or word behind the last "answer is"; or empty."""
    if found := boxed(text):
        return found
    places = [match.end() for match in _SAID.finditer(text)]
    if not places:
        return ""
    line = text[places[-1] :].strip().partition("\n")[0]
    formula = re.match(r"\\[(\[](.*?)\\[)\]]|\$+(.*?)\$+", line)
    if formula:
        return (formula[1] or formula[2] or "").strip()
    words = line.rstrip(".").split()
    return words[0] if len(words) == 1 else ""


def final_line(text: str, cut: bool = False) -> str:
    """What follows the last ``Answer:`` at a line's start, else the last line that is not empty;
    nothing of the kind in an answer that was ``cut``."""
    if found := [match[1].strip() for match in _LINE.finditer(text) if match[1].strip()]:
        return found[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "" if cut or not lines else lines[-1]


def same_words(one: str, other: str) -> bool:
    """Whether two answers are the same number, or the same words: case, spacing, quotes, emphasis,
    dollar signs and a full stop at the end aside."""
    x, y = number(one), number(other)
    if x is not None and y is not None:
        return x == y
    return bool(_words(one)) and _words(one) == _words(other)


def _words(text: str) -> str:
    held = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return held.strip("\"'`*_$ ").rstrip(".").strip("\"'`*_$ ")
