"""Answers as bytes: HTTP heads, JSON, events; and the error that becomes one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


class Refused(Exception):
    """A request that is answered with an error; its text is the message."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def dumps(value: Any) -> bytes:
    """JSON without spaces, as SGLang's orjson writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


def events(payloads: Sequence[bytes]) -> bytes:
    """Server-sent events, each an HTTP chunk of its own."""
    return b"".join([b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data) for data in payloads])


def head(status: int, size: int, kind: str = "application/json", keep: bool = True) -> bytes:
    """The head of an answer with ``size`` bytes."""
    closing = "" if keep else "Connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {size}\r\n{closing}\r\n"
    ).encode()
