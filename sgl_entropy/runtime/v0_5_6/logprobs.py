"""Log-probabilities of tokens that cannot follow, which JSON has no number for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sgl_entropy.runtime.v0_5_6 import ours

# What OpenAI's API reports for a token that is not among the likeliest.
LOWEST = -9999.0

Token = tuple[float | None, int, str | None]


def in_json(values: Sequence[float | None]) -> Sequence[float | None]:
    """Minus infinity (a token that a grammar forbids) as null.

    Args:
        values: nats; None = unknown, as of a prompt's first token.
    """
    if not ours.active():
        return values
    return [value if value is None or math.isfinite(value) else None for value in values]


def in_openai(tokens: Sequence[Token]) -> Sequence[Token]:
    """Null as the lowest number, in OpenAI's form, which knows no null.

    Args:
        tokens: log-probability, id and text of each.
    """
    if not ours.active():
        return tokens
    return [(LOWEST if value is None else value, token, text) for value, token, text in tokens]
