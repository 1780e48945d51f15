"""Bodies that no route can read are answered 400, where upstream's validators raise and answer 500."""

from __future__ import annotations

import traceback
from typing import Any

from sgl_entropy.runtime.v0_5_6 import ours

# FastAPI calls it once the body was read and checked.
_ENDPOINT = "run_endpoint_function"


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
        "message": f"{request.url.path}: {_said(problem)}",
        "type": HTTPStatus.BAD_REQUEST.phrase,
        "param": None,
        "code": HTTPStatus.BAD_REQUEST.value,
    }
    nested = request.url.path.startswith("/v1/responses")
    return ORJSONResponse(
        {"error": error} if nested else error, status_code=HTTPStatus.BAD_REQUEST.value
    )


def wrong_request(problem: Exception) -> bool:
    """Whether the request is at fault, not the server."""
    frames = traceback.extract_tb(problem.__traceback__)
    return isinstance(problem, ValueError) or not any(f.name == _ENDPOINT for f in frames)


def _said(problem: Exception) -> str:
    if isinstance(problem, ValueError):
        return " ".join(str(problem).split())
    return f"expected another kind of body ({type(problem).__name__}: {problem})"
