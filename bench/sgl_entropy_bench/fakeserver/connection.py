"""HTTP/1.1 on one connection: requests are read here, answered elsewhere and written here."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from sgl_entropy_bench.fakeserver.wire import STREAM_END, Json, Refused, dumps, head

Serve = Callable[[str, str, bytes], None]
MAX_HEAD = 64 * 2**10
MAX_BODY = 64 * 2**20


class Connection(asyncio.Protocol, ABC):
    """One client's connection, with keep-alive; one request at a time."""

    def __init__(self) -> None:
        # Whether the client is slow to read.
        self.congested = False
        self._buffer = bytearray()
        self._answering = False
        self._keep = True
        self._transport: asyncio.Transport

    @abstractmethod
    def serve(self, method: str, path: str, body: bytes) -> None:
        """Answer a request, now or later; may raise Refused instead."""

    def answered(self) -> None:
        """The answer is out: close, or go on with the next request."""
        self._answering = False
        if not self._keep:
            self.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._read)

    def send(self, data: bytes) -> None:
        """Write, unless the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """A whole answer."""
        self.send(head(status, len(body), kind, self._keep) + body)
        self.answered()

    def refuse(self, error: Refused, path: str) -> None:
        """An error as SGLang words it on this path."""
        body: Json = {"message": str(error)}
        if path != "/generate":
            body["code"] = error.status
        self.reply(error.status, dumps({"error": body}))

    def end_stream(self, data: bytes) -> None:
        """The last events of a stream and HTTP's mark of its end."""
        self.send(data + STREAM_END)
        self.answered()

    def close(self) -> None:
        """Close once what was written is out."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self) -> None:
        """Serve the requests in the buffer, up to one whose answer takes time."""
        while self._buffer and not self._answering and not self._transport.is_closing():
            try:
                request = self._take()
            except Refused as error:
                # Where this request ends is not known, so neither is where the next begins.
                self._keep = False
                self.refuse(error, "")
                return
            if request is None:
                return
            self._answering = True
            self.attempt(self.serve, *request)

    def attempt(self, serve: Serve, method: str, path: str, body: bytes) -> None:
        """Serve a request; one that is refused is answered so."""
        try:
            serve(method, path, body)
        except Refused as error:
            self.refuse(error, path)

    def _take(self) -> tuple[str, str, bytes] | None:
        """Method, path and body of the next request; None while it is not all there."""
        end = self._buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD:
                raise Refused("the request's head is too long", 431)
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        try:
            method, target, version = first.split(" ")
            size = int(headers.get("content-length", "0"))
        except ValueError:
            raise Refused("not an HTTP request") from None
        if version != "HTTP/1.1":
            raise Refused("only HTTP/1.1 is spoken here", 505)
        if "transfer-encoding" in headers:
            raise Refused("a request's body needs Content-Length", 411)
        if not 0 <= size <= MAX_BODY:
            raise Refused("the request's body is too long", 413)
        stop = end + 4 + size
        if len(self._buffer) < stop:
            return None
        body = bytes(self._buffer[end + 4 : stop])
        del self._buffer[:stop]
        self._keep = headers.get("connection", "").lower() != "close"
        return method, target.partition("?")[0], body
