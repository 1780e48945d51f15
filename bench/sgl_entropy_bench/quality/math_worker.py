"""Scores answers with math-verify: a request a line on standard input, a verdict a line on output.

``mathematics`` hands this file's text to a fresh interpreter, which it kills when an expression
takes too long. math-verify's own limits of time are off: they need signals, and an integer power
in C does not heed them.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

MEMORY_BYTES = 4 * 2**30
_MOST_SHOWN = 300


def main() -> None:
    """Say that it is ready (or why not), then answer requests until standard input ends.

    Request: ``references``, ``text``, ``anchored`` (only a box, or what "answer is" and the like
    announces, counts), and ``limit_s``, after which the process ends. Verdict: ``extracted``
    (empty = nothing of the form) and ``right``.
    """
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    except ImportError as error:
        _say({"missing": str(error)})
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def read(text: str, anchored: bool) -> list[Any]:
        # A box first, as the tasks ask for it.
        forms = [
            LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=not anchored),
            ExprExtractionConfig(try_extract_without_anchor=not anchored),
        ]
        expressions: list[Any] = parse(text, forms, parsing_timeout=None)
        return expressions

    def verdict(references: Sequence[str], text: str, anchored: bool) -> dict[str, Any]:
        answer = read(text, anchored)
        right = any(
            verify(read(reference, False), answer, timeout_seconds=None) for reference in references
        )
        return {"extracted": str(answer[-1])[:_MOST_SHOWN] if answer else "", "right": right}

    _say({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        # Its default action ends the process even within an integer power in C.
        signal.setitimer(signal.ITIMER_REAL, request.pop("limit_s"))
        said = verdict(**request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(said)


def _say(said: dict[str, Any]) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
