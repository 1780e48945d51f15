"""The final answer in a text, where a task's own instruction says where it stands."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_LINE = re.compile(r"^[\s>*_#]*(?:final\s+)?answer\**\s*:\**(.*)$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d*[1-9]\d*)?")


def without_thoughts(text: str) -> str:
    """What follows a reasoning model's last ``</think>``."""
    return text.rpartition("</think>")[2]


def marked(text: str) -> str:
    """What follows the last ``####`` on its line; empty where that holds no digit."""
    line = text.rpartition("####")[2].strip().partition("\n")[0] if "####" in text else ""
    return line if re.search(r"\d", line) else ""


def final_line(text: str, cut: bool = False) -> str:
    """What follows the last ``Answer:`` at a line's start, else the last line that is not empty;
    in an answer that was ``cut`` by its token limit only the former."""
    if lines := [match[1].strip() for match in _LINE.finditer(text) if match[1].strip()]:
        return lines[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "" if cut or not lines else lines[-1]


def same_words(one: str, other: str) -> bool:
    """Whether two answers are the same number, or the same words. Case, spacing, quotes, emphasis,
    dollar signs and a full stop at the end do not matter."""
    x, y = _words(one), _words(other)
    return bool(x) and (x == y or (_value(x) is not None and _value(x) == _value(y)))


def _words(text: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip("\"'`*_$ ").rstrip(".").strip("\"'`*_$ ")


def _value(text: str) -> Fraction | None:
    text = text.replace("−", "-").replace("$", "").rstrip("% ")
    if not re.search(r"\d", text) or not _NUMBER.fullmatch(text):
        return None
    return Fraction(text.replace(",", ""))
