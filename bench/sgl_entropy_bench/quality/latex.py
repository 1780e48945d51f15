"""Answers in LaTeX: the last box, and one way of writing what may be written in several (ours).

String rules alone, no algebra: ``x+1`` and ``1+x`` differ. Rational numbers are compared by value.
"""

from __future__ import annotations

import re
from fractions import Fraction

from sgl_entropy_bench.quality.numerals import number

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\(?:big|Big|bigg|Bigg)[lr]?(?![a-z])|\\displaystyle|\\quad"
    r"|(?<!\\)\\[!,;:> ]|~|\\?\$|\\?%|\^\{?\\circ\}?|\\degree|°"
)
_WORDS = r"\\(?:text|mathrm|mbox|textbf|textit|textrm|mathbf|operatorname)\s*\{([^{}]*)\}"
_SPELLINGS = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\leq(?![a-z])"), r"\\le"),
    (re.compile(r"\\geq(?![a-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![a-z])"), r"\\ne"),
    (re.compile(r"−"), "-"),
    (re.compile(r"\{,\}"), ","),
)
_FRACTION = re.compile(r"([+-]?)\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}")


def boxed(text: str) -> str:
    """What the last whole ``\\boxed{}`` holds, braces in it matched; empty = there is none."""
    found = ""
    for match in _BOX.finditer(text):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            # \boxed 5
            words = rest.partition("$")[0].split()
            found = words[0] if match[0][-1:].isspace() and words else found
        elif (inside := _braced(rest)) is not None:
            found = inside
    return found.strip()


def _braced(text: str) -> str | None:
    """What stands in the braces that ``text`` begins with; None = they do not close."""
    depth = 0
    escaped = False
    for at, sign in enumerate(text):
        if escaped or sign == "\\":
            escaped = not escaped
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return text[1:at]
    return None


def equal(one: str, other: str) -> bool:
    """Whether two answers are the same by value, or after ``normalised``."""
    a, b = normalised(one), normalised(other)
    if a == b:
        return bool(a)
    x, y = rational(a), rational(b)
    return x is not None and x == y


def normalised(text: str) -> str:
    """One spelling of an answer: no spaces, sizes, units, degrees, money or percent signs; braces
    around every argument; ``x =`` in front and a full stop behind are gone."""
    held = text.strip().rstrip(".").strip()
    for pattern, one in _SPELLINGS:
        held = pattern.sub(one, held)
    held = _DROPPED.sub("", held)
    held = _without_words(held)
    held = re.sub(r"\s+", "", held)
    held = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", held)
    held = re.sub(r"\\frac(\w)\{", r"\\frac{\1}{", held)
    held = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", held)
    held = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", held)
    held = re.sub(r"([\^_])\{(\w)\}", r"\1\2", held)
    held = re.sub(r"^[A-Za-z]{1,2}(?:\([A-Za-z]\))?=(?!=)", "", held)
    held = re.sub(r"^[A-Za-z]\\in(?![a-z])", "", held)
    if re.fullmatch(r"-?\d+/\d+", held):
        held = re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", held)
    if choice := re.fullmatch(r"\(([A-Za-z])\)", held):
        held = choice[1]
    return held.casefold() if held.isalpha() and len(held) > 1 else held


def rational(text: str) -> Fraction | None:
    """The value of a normalised integer, decimal or fraction of integers; None = none such."""
    if match := _FRACTION.fullmatch(text):
        below = int(match[3])
        sign = -1 if match[1] == "-" else 1
        return None if below == 0 else sign * Fraction(int(match[2]), below)
    return number(text)


def _without_words(text: str) -> str:
    """``\\text{}`` undone: a word that is the whole answer, or stands before anything else, stays;
    behind a value it is a unit and goes."""
    behind = re.sub(rf"(?<=[\d}})\w])\s*{_WORDS}(?:\^\{{?\d\}}?)?\s*$", "", text)
    return re.sub(_WORDS, r"\1", behind)
