"""Stop expressions are searched for within a limit of time."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from sgl_entropy.runtime.v0_5_6 import ours

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

# Of one search, once a token and request; those that people write take microseconds.
LIMIT_S = 0.02


def found(req: Req, expression: str, text: str) -> bool:
    """Whether ``expression`` matches within ``text``; a search that takes too long ends ``req``.

    Python's own engine cannot be stopped: ``(a+)+b`` takes seconds on 26 letters, in which no
    request of the server goes on.
    """
    if not ours.active():
        return re.search(expression, text) is not None
    import regex
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    try:
        return regex.search(expression, text, timeout=LIMIT_S) is not None
    except TimeoutError:
        req.to_finish = FINISH_ABORT(
            f"stop_regex: expected an expression that is searched for within {LIMIT_S} s, "
            f"found {expression!r}, which backtracks for longer",
            HTTPStatus.BAD_REQUEST,
            "BadRequestError",
        )
        return False
