"""Numbers as answers write them: ``1,234.50``, ``-$5``, ``18 %``, ``3/4``."""

from __future__ import annotations

import re
from fractions import Fraction

_BODY = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/\d+)?"
# A minus belongs to a number only where it cannot mean "less": 10-5 ends in 5.
_WITHIN = re.compile(rf"(?:(?<![\w).])-)?\$?{_BODY}")
_ALONE = re.compile(rf"[+-]?\$?-?{_BODY}")


def number(text: str) -> Fraction | None:
    """The value of a text that is one number, a unit of money or per cent aside; else None."""
    held = plain(text).strip().strip("*`_ ").rstrip(".% ")
    if not _ALONE.fullmatch(held):
        return None
    try:
        return Fraction(held.replace("$", "").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def last_number(text: str) -> str:
    """The last number in a text, as written there; empty = none."""
    found = _WITHIN.findall(plain(text))
    return str(found[-1]) if found else ""


def first_number(text: str) -> str:
    """The first number in a text, as written there; empty = none."""
    match = _WITHIN.search(plain(text))
    return match[0] if match else ""


def plain(text: str) -> str:
    """Minus signs, LaTeX's escapes and its thousands separator as in plain text."""
    for written, read in (("−", "-"), ("{,}", ","), ("\\$", "$"), ("\\%", "%"), ("\\,", "")):
        text = text.replace(written, read)
    return text
