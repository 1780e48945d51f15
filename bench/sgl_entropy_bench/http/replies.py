"""The one reader of what servers send back: streams, ``meta_info``, errors.

A reader is fed the events of a response as they come, keeps what a record needs, and looks into as
little of them as possible: at thousands of chunks a second, parsing is what a client spends.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.http.routes import Api

Json = dict[str, Any]


class StreamError(ValueError):
    """A stream that is not what the route promises."""


class EventSplitter:
    """Gives the data of each whole server-sent event, from the bytes of a stream as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes; what follows the last of them is kept."""
        data = self._rest + data if self._rest else data
        if b"\r" in data:  # a \r at the very end may be half of a line's end
            data = data.replace(b"\r\n", b"\n")
        *blocks, self._rest = data.split(b"\n\n")
        return [
            line[5:].strip()
            for block in blocks
            for line in block.split(b"\n")
            if line.startswith(b"data:")
        ]


# The event that ends a stream.
DONE = b"[DONE]"


@dataclass(frozen=True)
class MetaInfo:
    """The ``meta_info`` of a reply of ``/generate``. None = the server does not say.

    Attributes:
        prompt_tokens, completion_tokens, cached_tokens: tokens of the prompt, of the answer, and
            of the prompt those found in the prefix cache.
        rank: data-parallel rank.
        finish: why it ended; empty = it has not.
        refusal: where it ended by being aborted: the message, and
        status: the HTTP status that it stands for.
        cycles: draft-verify cycles by SGLang's own counter, and
        own_cycles: by ours, which only a patched server has.
        emitted, drafted: tokens out of the cycles, and drafted ones.
        accepted: accepted drafts by position.
        easd_checks, easd_fires: tokens that EASD checked, and rejected.
        trace: the cycles one by one, where that was asked for.
        raw: all of it, by the server's own names.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    rank: int | None
    finish: str
    refusal: str | None
    status: int | None
    cycles: int | None
    own_cycles: int | None
    emitted: int | None
    drafted: int | None
    accepted: tuple[int, ...] | None
    easd_checks: int | None
    easd_fires: int | None
    trace: Any
    raw: Mapping[str, Any]

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> MetaInfo:
        """From a reply, or from one event of its stream. Raises StreamError where it has none."""
        meta = reply.get("meta_info")
        if not isinstance(meta, dict):
            raise StreamError("the reply holds no meta_info")
        reason = meta.get("finish_reason")
        reason = reason if isinstance(reason, dict) else {"type": str(reason or "")}
        aborted = reason.get("type") == "abort"
        completion, cycles = _count(meta, "completion_tokens"), _count(meta, "spec_verify_ct")
        emitted = _count(meta, "spec_emitted")
        if cycles and emitted is None and completion is not None:
            # An SGLang without our counters: the first token comes before the first cycle.
            emitted = completion - 1
        accepted = meta.get("spec_accepted_by_position")
        return cls(
            prompt_tokens=_count(meta, "prompt_tokens"),
            completion_tokens=completion,
            cached_tokens=_count(meta, "cached_tokens"),
            rank=_count(meta, "dp_rank"),
            finish=str(reason.get("type", "")),
            refusal=str(reason.get("message")) if aborted else None,
            status=error_status(reason) if aborted else None,
            cycles=cycles,
            own_cycles=_count(meta, "spec_cycles"),
            emitted=emitted,
            drafted=_count(meta, "spec_drafted"),
            accepted=tuple(accepted) if isinstance(accepted, list) else None,
            easd_checks=_count(meta, "easd_checks"),
            easd_fires=_count(meta, "easd_fires"),
            trace=meta.get("spec_trace"),
            raw=meta,
        )


class Reader(ABC):
    """Takes a response apart; times are seconds from the start of the run.

    Attributes:
        text: the whole text, once finished.
    """

    def __init__(self) -> None:
        self.text = ""
        # Times at which new tokens came, and how many there were by then.
        self._chunks: list[tuple[float, int | None]] = []
        self._streamed = False

    @abstractmethod
    def feed(self, event: bytes, now: float) -> None:
        """One SSE event's data. Raises StreamError for one that the route does not have."""

    @abstractmethod
    def whole(self, body: bytes, now: float) -> None:
        """The body of a reply that was not streamed. Raises StreamError."""

    @abstractmethod
    def finish(self, record: RequestRecord) -> None:
        """Write what was learned into the record. Raises StreamError for what is missing."""

    def salvage(self, record: RequestRecord) -> None:
        """Write the events so far, also of a response that broke off: their tokens were
        delivered."""
        record.chunks = self._chunks
        record.first = self._chunks[0][0] if self._chunks else None

    def _arrived(self, now: float, tokens: int | None) -> None:
        if tokens is not None and self._chunks and tokens <= (self._chunks[-1][1] or 0):
            return  # nothing new: a last event that only says why it ended
        if tokens != 0:
            self._chunks.append((now, tokens))


def reader_of(api: Api) -> Reader:
    """A fresh reader for one response."""
    return _GenerateReader() if api == "generate" else _OpenAIReader(api)


# A whole event is read only at the end; between, this finds the one number that is needed.
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_ERROR = re.compile(rb'^\s*\{\s*"error"\s*:')


class _GenerateReader(Reader):
    """SGLang's ``/generate``: every event holds all so far, with counts."""

    def __init__(self) -> None:
        super().__init__()
        self._last = b""

    def feed(self, event: bytes, now: float) -> None:
        self._streamed = True
        if _ERROR.match(event):
            raise StreamError(_error_text(_object(event)))
        self._last = event
        # The counts stand behind the text and the ids, which may hold anything.
        match = _TOKENS.search(event, max(0, event.rfind(b'"meta_info"')))
        if match is None and not event.rstrip().endswith(b"}"):
            raise StreamError("an event of the stream is not JSON")
        self._arrived(now, None if match is None else int(match[1]))

    def whole(self, body: bytes, now: float) -> None:
        self._last = body

    def finish(self, record: RequestRecord) -> None:
        reply = _object(self._last)
        meta = MetaInfo.of(reply)
        if not meta.finish and self._streamed:
            raise StreamError("the stream ended before the answer did")
        if meta.refusal is not None:
            raise StreamError(f"aborted by the server: {meta.refusal}")
        if meta.prompt_tokens is None or meta.completion_tokens is None:
            raise StreamError("the reply counts no tokens")
        if self._streamed:
            self.salvage(record)
        text = reply.get("text")
        self.text = text if isinstance(text, str) else ""
        record.finish = meta.finish
        record.prompt_tokens = meta.prompt_tokens
        record.completion_tokens = meta.completion_tokens
        record.cached_tokens = meta.cached_tokens
        record.rank = meta.rank
        if meta.cycles:
            record.cycles = meta.cycles
            record.emitted = meta.emitted
            record.drafted = meta.drafted
            record.accepted = None if meta.accepted is None else list(meta.accepted)
        record.easd_checks = meta.easd_checks
        record.easd_fires = meta.easd_fires
        record.text_hash = _hash(self.text) if isinstance(text, str) else ""


class _OpenAIReader(Reader):
    """OpenAI's routes: every event holds what is new; counts come in a last one, if at all."""

    def __init__(self, api: Api) -> None:
        super().__init__()
        self._piece: Callable[[Json], Any] = (
            (lambda choice: _said(choice.get("delta") or choice.get("message") or {}))
            if api == "chat"
            else (lambda choice: choice.get("text"))
        )
        self._pieces: list[str] = []
        self._usage: Json = {}
        self._finish = ""

    def feed(self, event: bytes, now: float) -> None:
        self._streamed = True
        if self._take(_object(event)):
            self._arrived(now, None)

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

    def finish(self, record: RequestRecord) -> None:
        if self._finish == "abort":
            raise StreamError("aborted by the server")
        if not self._usage:
            raise StreamError("the reply ended without usage: its tokens cannot be counted")
        if self._streamed:
            self.salvage(record)
        record.finish = self._finish
        record.prompt_tokens = _count(self._usage, "prompt_tokens")
        record.completion_tokens = _count(self._usage, "completion_tokens")
        details = self._usage.get("prompt_tokens_details") or {}
        record.cached_tokens = _count(details, "cached_tokens")
        self.text = "".join(self._pieces)
        record.text_hash = _hash(self.text)


def answer_of(api: Api, reply: Any) -> str:
    """The text of a reply that was not streamed; thoughts before it end in ``</think>``.

    Raises:
        StreamError: there is none.
        AttributeError, TypeError, LookupError: a reply of another form.
    """
    if api == "generate":
        text = reply.get("text")
    else:
        choices = reply.get("choices") or [{}]
        message = choices[0].get("message") or {}
        text = choices[0].get("text") if api == "completions" else message.get("content")
        if api == "chat" and message.get("reasoning_content"):
            text = f"{message['reasoning_content']}</think>{text or ''}"
    if not isinstance(text, str):
        raise StreamError("the reply holds no text")
    return text


def error_status(error: Any) -> int | None:
    """The HTTP status that an error object in a stream stands for, where it names one."""
    if not isinstance(error, dict):
        return None
    for key in ("status_code", "code"):
        if isinstance(error.get(key), int):
            return int(error[key])
    return None


def error_text(body: bytes) -> str:
    """What an error reply says, in a few words."""
    try:
        return _error_text(_object(body))
    except StreamError:
        return body.decode(errors="replace").strip()[:200]


def _object(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        raise StreamError("an event of the stream is not JSON") from None
    if not isinstance(value, dict):
        raise StreamError("an event of the stream is no object")
    return value


def _error_text(reply: Json) -> str:
    error = reply.get("error", reply)
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]


def _said(message: Json) -> str:
    """What a message holds, thoughts first: they are output too."""
    return str(message.get("reasoning_content") or "") + str(message.get("content") or "")


def _count(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
