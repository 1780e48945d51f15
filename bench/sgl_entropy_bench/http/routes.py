"""What is sent to a server and how its stream is read, route by route.

A reader is fed the bytes of a response as they come, keeps what a record needs, and looks into as
little of them as possible: at thousands of chunks a second, parsing is what a client spends.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sgl_entropy_bench.http.record import RequestRecord

Json = dict[str, Any]
Api = Literal["generate", "chat", "completions"]


class StreamError(ValueError):
    """A stream that is not what the route promises."""


@dataclass(frozen=True)
class Output:
    """How long answers get and how they are sampled.

    Attributes:
        max_tokens: the most tokens of an answer.
        ignore_eos: every answer has ``max_tokens`` tokens.
        temperature: 0 = greedy.
        stream: False = one reply at the end: no first token, no chunks.
        sampling: further sampling parameters, passed on.
    """

    max_tokens: int = 256
    ignore_eos: bool = False
    temperature: float = 0.0
    stream: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        length = f"exactly {self.max_tokens} tokens (ignore_eos)"
        if not self.ignore_eos:
            length = f"natural stop, at most {self.max_tokens} tokens"
        return f"{length}, temperature {self.temperature:g}"


class Reader(Protocol):
    """Takes a response apart; times are seconds from the start of the run."""

    def feed(self, event: bytes, now: float) -> None:
        """One SSE event's data. Raises StreamError for one that the route does not have."""

    def whole(self, body: bytes, now: float) -> None:
        """The body of a reply that was not streamed. Raises StreamError."""

    def finish(self, record: RequestRecord) -> None:
        """Write what was learned into the record. Raises StreamError for what is missing."""

    def salvage(self, record: RequestRecord) -> None:
        """Write the events of a response that broke off: their tokens were delivered."""


def body_of(api: Api, model: str, text: str, output: Output) -> tuple[str, Json]:
    """(path, body) of one request; ``text``: for chat the user's message, else the whole prompt."""
    if api == "generate":
        sampling = {
            "max_new_tokens": output.max_tokens,
            "temperature": output.temperature,
            "ignore_eos": output.ignore_eos,
            **output.sampling,
        }
        return "/generate", {"text": text, "sampling_params": sampling, "stream": output.stream}
    body: Json = {
        "model": model,
        "max_tokens": output.max_tokens,
        "temperature": output.temperature,
        "stream": output.stream,
        **({"ignore_eos": True} if output.ignore_eos else {}),
        **({"stream_options": {"include_usage": True}} if output.stream else {}),
        **output.sampling,
    }
    if api == "chat":
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**body, "prompt": text}


def reader_of(api: Api) -> Reader:
    """A fresh reader for one response."""
    return _GenerateReader() if api == "generate" else _OpenAIReader(api)


# A whole event is read only at the end; between, this finds the one number that is needed.
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_ERROR = re.compile(rb'^\s*\{\s*"error"\s*:')


class _Chunks:
    """Times at which new tokens came, and the first of them."""

    def __init__(self) -> None:
        self.chunks: list[tuple[float, int | None]] = []

    def add(self, now: float, tokens: int | None) -> None:
        if tokens is not None and self.chunks and tokens <= (self.chunks[-1][1] or 0):
            return  # nothing new: a last event that only says why it ended
        if tokens != 0:
            self.chunks.append((now, tokens))

    def write(self, record: RequestRecord) -> None:
        record.chunks = self.chunks
        record.first = self.chunks[0][0] if self.chunks else None


class _GenerateReader:
    """SGLang's ``/generate``: every event holds all so far, with counts."""

    def __init__(self) -> None:
        self._last = b""
        self._chunks = _Chunks()
        self._streamed = False

    def feed(self, event: bytes, now: float) -> None:
        self._streamed = True
        if _ERROR.match(event):
            raise StreamError(_message(event))
        self._last = event
        # The counts stand behind the text and the ids, which may hold anything.
        found = _TOKENS.search(event, max(0, event.rfind(b'"meta_info"')))
        if found is None:
            if not event.rstrip().endswith(b"}"):
                raise StreamError("an event of the stream is not JSON")
            self._chunks.add(now, None)
            return
        self._chunks.add(now, int(found[1]))

    def whole(self, body: bytes, now: float) -> None:
        self._last = body

    def salvage(self, record: RequestRecord) -> None:
        self._chunks.write(record)

    def finish(self, record: RequestRecord) -> None:
        reply = _object(self._last)
        meta = reply.get("meta_info")
        if not isinstance(meta, dict):
            raise StreamError("the reply holds no meta_info")
        reason = meta.get("finish_reason")
        if reason is None and self._streamed:
            raise StreamError("the stream ended before the answer did")
        reason = reason if isinstance(reason, dict) else {"type": str(reason or "")}
        if reason.get("type") == "abort":
            raise StreamError(f"aborted by the server: {reason.get('message')}")
        if self._streamed:
            self._chunks.write(record)
        record.finish = str(reason.get("type", ""))
        record.prompt_tokens = _count(meta, "prompt_tokens")
        record.completion_tokens = _count(meta, "completion_tokens")
        record.cached_tokens = _count(meta, "cached_tokens")
        record.rank = _count(meta, "dp_rank")
        if record.prompt_tokens is None or record.completion_tokens is None:
            raise StreamError("the reply counts no tokens")
        cycles = _count(meta, "spec_verify_ct")
        if cycles:
            record.cycles = cycles
            # An SGLang without our counters: the first token comes before the first cycle.
            record.emitted = meta.get("spec_emitted", record.completion_tokens - 1)
            record.drafted = _count(meta, "spec_drafted")
            accepted = meta.get("spec_accepted_by_position")
            record.accepted = list(accepted) if isinstance(accepted, list) else None
        record.easd_checks = _count(meta, "easd_checks")
        record.easd_fires = _count(meta, "easd_fires")
        record.text_hash = _hash(str(reply.get("text", "")))


class _OpenAIReader:
    """OpenAI's routes: every event holds what is new; counts come in a last one, if at all."""

    def __init__(self, api: Api) -> None:
        self._piece: Callable[[Json], Any] = (
            (lambda choice: _said(choice.get("delta") or choice.get("message") or {}))
            if api == "chat"
            else (lambda choice: choice.get("text"))
        )
        self._pieces: list[str] = []
        self._chunks = _Chunks()
        self._usage: Json = {}
        self._finish = ""
        self._streamed = False

    def feed(self, event: bytes, now: float) -> None:
        self._streamed = True
        if self._take(_object(event)):
            self._chunks.add(now, None)

    def whole(self, body: bytes, now: float) -> None:
        self._take(_object(body))

    def _take(self, reply: Json) -> bool:
        if "error" in reply:
            raise StreamError(_error_text(reply))
        self._usage = reply.get("usage") or self._usage
        new = False
        for choice in reply.get("choices") or ():
            if piece := self._piece(choice):
                self._pieces.append(str(piece))
                new = True
            self._finish = choice.get("finish_reason") or self._finish
        return new

    def salvage(self, record: RequestRecord) -> None:
        self._chunks.write(record)

    def finish(self, record: RequestRecord) -> None:
        if self._finish == "abort":
            raise StreamError("aborted by the server")
        if not self._usage:
            raise StreamError("the reply ended without usage: its tokens cannot be counted")
        if self._streamed:
            self._chunks.write(record)
        record.finish = self._finish
        record.prompt_tokens = _count(self._usage, "prompt_tokens")
        record.completion_tokens = _count(self._usage, "completion_tokens")
        details = self._usage.get("prompt_tokens_details") or {}
        record.cached_tokens = _count(details, "cached_tokens")
        record.text_hash = _hash("".join(self._pieces))


def error_text(body: bytes) -> str:
    """What an error reply says, in a few words."""
    try:
        return _error_text(_object(body))
    except StreamError:
        return body.decode(errors="replace").strip()[:200]


def _object(data: bytes) -> Json:
    try:
        found = json.loads(data)
    except ValueError:
        raise StreamError("an event of the stream is not JSON") from None
    if not isinstance(found, dict):
        raise StreamError("an event of the stream is no object")
    return found


def _message(data: bytes) -> str:
    return _error_text(_object(data))


def _error_text(reply: Json) -> str:
    error = reply.get("error", reply)
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]


def _said(message: Json) -> str:
    """What a message holds, thoughts first: they are output too."""
    return str(message.get("reasoning_content") or "") + str(message.get("content") or "")


def _count(held: Mapping[str, Any], name: str) -> int | None:
    value = held.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
