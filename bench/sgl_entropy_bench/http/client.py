"""A client for SGLang's HTTP routes on the standard library's http.client.

It is simple on purpose: on two cores every millisecond spent here is taken from the server.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.http.replies import (
    DONE,
    EventSplitter,
    MetaInfo,
    StreamError,
    error_status,
    error_text,
    reader_of,
)

Json = dict[str, Any]


class ServerError(RuntimeError):
    """The server refused a request (``status`` 4xx or 5xx) or broke off (``status`` None)."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Arrival:
    """One streamed event: when it came (time.monotonic) and all tokens of the request by then.

    SGLang sends one a step; a busy machine may hand over several merged into one. The count of
    draft-verify cycles comes with the last event alone, so it is not here.
    """

    time_s: float
    tokens: int


@dataclass(frozen=True)
class Generation:
    """One finished request.

    Times are seconds on time.monotonic's clock. ``output_ids`` is empty on the OpenAI routes,
    which do not return token ids in this version. ``cycles`` counts draft-verify cycles and
    ``emitted`` the tokens that came out of them; both are 0 without speculation and on the
    OpenAI routes, which have no ``meta`` either.
    """

    text: str
    output_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    cycles: int
    emitted: int
    finish: str
    begun_s: float
    first_s: float
    ended_s: float
    arrivals: tuple[Arrival, ...] = ()
    meta: MetaInfo | None = None

    @property
    def drafted(self) -> int:
        """Drafted tokens; 0 where the server does not say."""
        return self.meta.drafted or 0 if self.meta is not None else 0

    @property
    def easd_checks(self) -> int:
        """Tokens that EASD checked."""
        return self.meta.easd_checks or 0 if self.meta is not None else 0

    @property
    def easd_fires(self) -> int:
        """Tokens that EASD rejected."""
        return self.meta.easd_fires or 0 if self.meta is not None else 0

    @property
    def raw(self) -> Mapping[str, Any]:
        """``meta_info`` by the server's own names; empty on the OpenAI routes."""
        return self.meta.raw if self.meta is not None else {}

    @property
    def seconds(self) -> float:
        """From sending the request to the last byte."""
        return self.ended_s - self.begun_s


class Client:
    """Requests to one server. Threads may share it: every request has its own connection."""

    def __init__(self, host: str, port: int, timeout_s: float = 600.0) -> None:
        self.host = host
        self.port = port
        self.timeout_s = timeout_s

    @classmethod
    def from_url(cls, url: str, timeout_s: float = 600.0) -> Client:
        """A client of the server at ``http://HOST:PORT``.

        Raises:
            ValueError: another scheme, no host, a bad port, or a path.
        """
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = -1
        if parts.scheme != "http" or not parts.hostname or port < 0 or parts.path.strip("/"):
            raise ValueError(f"expected a server as http://HOST:PORT, found {url!r}")
        return cls(parts.hostname, port, timeout_s)

    def healthy(self) -> bool:
        """Whether ``/health`` says that the server is up."""
        try:
            self.get("/health", timeout_s=10.0)
        except (ServerError, OSError):
            return False
        return True

    def get(self, path: str, timeout_s: float | None = None) -> Any:
        """GET ``path``; the parsed JSON, or None where the body is not JSON."""
        with self._response("GET", path, None, timeout_s) as response:
            return _parsed(response.read())

    def post(self, path: str, body: Json | None = None, timeout_s: float | None = None) -> Any:
        """POST JSON to ``path``; the parsed JSON, or None where the body is not JSON."""
        with self._response("POST", path, body, timeout_s) as response:
            return _parsed(response.read())

    def forget_prefixes(self, patience_s: float = 20.0) -> None:
        """Empty the prefix cache, so that the next prompts are processed anew.

        SGLang refuses with 400 while requests run, as those whose last event has just been sent,
        or that were cut off, still do for a moment: asked again for ``patience_s``.

        Raises:
            ServerError: it kept refusing, or has no such route (``status`` 404 or 405).
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self.post("/flush_cache", timeout_s=30.0)
            except ServerError as error:
                if error.status in (404, 405) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def events(self, path: str, body: Json) -> Generator[Json, None, None]:
        """POST with ``stream``; yields each server-sent event's JSON.

        Closing the generator early closes the connection, which makes SGLang abort the request.
        """
        for data in self._stream(path, body):
            event = json.loads(data)
            if "error" in event:
                error = event["error"]
                raise ServerError(f"{path}: {error_text(data)}", error_status(error))
            yield event

    def _stream(self, path: str, body: Json) -> Generator[bytes, None, None]:
        with self._response("POST", path, {**body, "stream": True}, None) as response:
            splitter = EventSplitter()
            while data := response.read1(1 << 16):
                for event in splitter.feed(data):
                    if event == DONE:
                        return
                    yield event
            raise ServerError(f"{path}: the stream broke off before its end")

    def generate(
        self,
        *,
        text: str | None = None,
        input_ids: Sequence[int] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        sampling: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Generation:
        """``/generate``, streamed, for one prompt given as text or as token ids.

        ``sampling`` adds sampling parameters, ``fields`` top-level ones (``rid`` and so on).
        """
        if (text is None) == (input_ids is None):
            raise ValueError("generate: give text or input_ids, and not both")
        body: Json = {
            **({"text": text} if input_ids is None else {"input_ids": list(input_ids)}),
            "sampling_params": {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                **(sampling or {}),
            },
            **fields,
        }
        begun = time.monotonic()
        arrivals: list[Arrival] = []
        last: Json = {}
        with contextlib.closing(self.events("/generate", body)) as events:
            for event in events:
                # Events of this route are cumulative: each holds all text and ids so far.
                last, meta = event, MetaInfo.of(event)
                arrivals.append(Arrival(time.monotonic(), meta.completion_tokens or 0))
        if not arrivals:
            raise ServerError("/generate: the stream held no event")
        meta = MetaInfo.of(last)
        if meta.refusal is not None:
            raise ServerError(f"/generate: aborted: {meta.refusal}", meta.status)
        return Generation(
            text=last.get("text") or "",
            output_ids=tuple(last.get("output_ids", ())),
            prompt_tokens=meta.prompt_tokens or 0,
            completion_tokens=meta.completion_tokens or 0,
            cycles=meta.cycles or 0,
            emitted=(meta.emitted or 0) if meta.cycles else 0,
            finish=meta.finish,
            begun_s=begun,
            first_s=arrivals[0].time_s,
            ended_s=time.monotonic(),
            arrivals=tuple(arrivals),
            meta=meta,
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        **fields: Any,
    ) -> Generation:
        """``/v1/chat/completions``, streamed."""
        body: Json = {
            "model": "default",
            "messages": [dict(message) for message in messages],
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "stream_options": {"include_usage": True},
            **fields,
        }
        begun = time.monotonic()
        reader, record = reader_of("chat"), RequestRecord(0, "", "", "measured", 0.0)
        try:
            with contextlib.closing(self._stream("/v1/chat/completions", body)) as events:
                for event in events:
                    reader.feed(event, time.monotonic())
            ended = time.monotonic()
            reader.finish(record)
        except StreamError as error:
            raise ServerError(f"/v1/chat/completions: {error}") from None
        return Generation(
            text=reader.text,
            output_ids=(),
            prompt_tokens=record.prompt_tokens or 0,
            completion_tokens=record.completion_tokens or 0,
            cycles=0,
            emitted=0,
            finish=record.finish,
            begun_s=begun,
            first_s=ended if record.first is None else record.first,
            ended_s=ended,
        )

    @contextlib.contextmanager
    def _response(
        self, method: str, path: str, body: Json | None, timeout_s: float | None
    ) -> Iterator[HTTPResponse]:
        connection = HTTPConnection(self.host, self.port, timeout=timeout_s or self.timeout_s)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise ServerError(
                    f"{path}: {response.status} {error_text(response.read())}", response.status
                )
            yield response
        except (HTTPException, ConnectionError, TimeoutError) as error:
            raise ServerError(f"{path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
