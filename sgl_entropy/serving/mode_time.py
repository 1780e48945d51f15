"""How long the entropy modes' own code takes in a scheduler (ours).

On a CPU that is the cost of a mode. On a GPU the code only queues work, so it is the scheduler's
part of the cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

_spent = 0.0


def timed(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Count the time in ``function``; timed functions must not call each other."""

    @wraps(function)
    def counted(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        global _spent
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            _spent += time.perf_counter() - began

    return counted


def seconds() -> float:
    """Since the process began."""
    return _spent
