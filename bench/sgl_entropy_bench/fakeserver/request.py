"""Generation requests: their bodies read and checked."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sgl_entropy_bench.fakeserver.wire import Json, Refused

# Prompt and output together, as a context length.
MAX_TOKENS = 32768


@dataclass(frozen=True)
class Ask:
    """What a generation request asks for. ``key`` stands for its prompt; ``limit`` is in tokens."""

    path: str
    key: bytes
    prompt_tokens: int
    limit: int
    ignore_eos: bool
    stream: bool
    usage: bool
    rid: str
    model: str

    @classmethod
    def parse(cls, path: str, data: bytes) -> Ask:
        """Read a body sent to ``path``; raises Refused with SGLang's status for a bad one."""
        body = json_object(data)
        sampling = body
        if path == "/generate":
            written, tokens = _native_prompt(body)
            sampling = member(body, "sampling_params", dict, {})
            limit = member(sampling, "max_new_tokens", int, 128)
        elif path == "/v1/completions":
            written, tokens = _text_prompt(body, "prompt")
            limit = member(body, "max_tokens", int, 16)
        else:
            written, tokens = _chat_prompt(body)
            limit = member(body, "max_tokens", int, max(0, MAX_TOKENS - tokens))
            limit = member(body, "max_completion_tokens", int, limit)
        if limit < 0:
            raise Refused(f"max_new_tokens must be at least 0, got {limit}.")
        if tokens + limit > MAX_TOKENS:
            raise Refused(
                f"Requested token count exceeds the model's maximum context length of {MAX_TOKENS}"
                f" tokens. You requested a total of {tokens + limit} tokens."
            )
        if member(body, "n", int, 1) != 1:
            raise Refused("this fake server answers once to each request: n must be 1")
        return cls(
            path=path,
            # A lone surrogate is valid in JSON and has no encoding of its own.
            key=blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).digest(),
            prompt_tokens=tokens,
            limit=limit,
            ignore_eos=member(sampling, "ignore_eos", bool, False),
            stream=member(body, "stream", bool, False),
            usage=member(member(body, "stream_options", dict, {}), "include_usage", bool, False),
            rid=member(body, "rid", str, "") or uuid.uuid4().hex,
            model=member(body, "model", str, "fake"),
        )


def json_object(data: bytes) -> Json:
    """A body's JSON object; raises Refused if it is none."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused("the body is not a JSON object")
    return body


def member(body: Json, name: str, kind: type, default: Any) -> Any:
    """``body[name]``, or the default where it is absent or null; Refused for another type."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"{name} must be of type {kind.__name__}, got {value!r:.100}")
    return value


# Each returns the prompt as a text that no prompt of another kind has, and its count of tokens.


def _native_prompt(body: Json) -> tuple[str, int]:
    ids = body.get("input_ids")
    if (ids is None) == (body.get("text") is None):
        raise Refused("Either text, input_ids or input_embeds should be provided.")
    return _text_prompt(body, "text") if ids is None else _ids_prompt(ids, "input_ids")


def _text_prompt(body: Json, name: str) -> tuple[str, int]:
    value = body.get(name)
    if isinstance(value, list):
        return _ids_prompt(value, name)
    text: str = member(body, name, str, "")
    if not text:
        raise Refused(f"{name}: the prompt is empty")
    return "text:" + text, math.ceil(len(text) / 4)


def _ids_prompt(ids: Any, name: str) -> tuple[str, int]:
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise Refused(f"{name}: expected one prompt as a text or as a list of token ids")
    if not ids:
        raise Refused(f"{name}: the prompt is empty")
    if min(ids) < 0:
        raise Refused(f"{name}: token ids must be at least 0, got {min(ids)}")
    return f"ids:{ids}", len(ids)


def _chat_prompt(body: Json) -> tuple[str, int]:
    messages = member(body, "messages", list, [])
    if not messages:
        raise Refused("Messages cannot be empty.")
    text = ""
    for message in messages:
        if not isinstance(message, dict):
            raise Refused("messages: each must be an object with role and content")
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if type(part) is dict)
        text += f"{member(message, 'role', str, '')}: {content}\n"
    return "chat:" + text, math.ceil(len(text) / 4)
