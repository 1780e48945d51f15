"""Bodies that no route can read are answered 400; upstream's validators raise, which is 500."""

from __future__ import annotations

import traceback
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours

# FastAPI calls it once the body was read and checked.
_ENDPOINT = "run_endpoint_function"
# SGLang's functions that go on reading in a route.
_READERS = {"normalize_batch_and_arguments", "_convert_to_internal_request", "_validate_request"}


def install(app: Any) -> None:
    """Register the answers with SGLang's FastAPI application.

    A ``ValueError`` says that the request was wrong, as everywhere in SGLang. Another exception
    says so only while the body is read: in a route it is a fault of the server, and stays one.
    """
    for kind in (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Any, problem: Exception) -> Any:
    from http import HTTPStatus

    from fastapi.responses import ORJSONResponse

    if not ours.active() or not wrong_request(problem):
        raise problem
    error = {
        "object": "error",
        "message": f"{request.url.path}: {said(problem)}",
        "type": HTTPStatus.BAD_REQUEST.phrase,
        "param": None,
        "code": HTTPStatus.BAD_REQUEST.value,
    }
    nested = request.url.path.startswith("/v1/responses")
    return ORJSONResponse(
        {"error": error} if nested else error, status_code=HTTPStatus.BAD_REQUEST.value
    )


def wrong_request(problem: Exception) -> bool:
    """Whether the request is at fault, not the server: nothing had been done but to read it."""
    if isinstance(problem, ValueError):
        return True
    names = {frame.name for frame in traceback.extract_tb(problem.__traceback__)}
    return _ENDPOINT not in names or bool(names & _READERS)


def unread(problem: Exception) -> str | None:
    """What to say of an exception of an OpenAI route; None = it is a fault of the server."""
    return said(problem) if ours.active() and wrong_request(problem) else None


def said(problem: Exception) -> str:
    """One line for the client."""
    text = str(problem)
    if not isinstance(problem, ValueError):
        text = f"expected another kind of body ({type(problem).__name__}: {text})"
    # Half a surrogate of the request cannot be written in UTF-8.
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
