"""Replies taken apart, well formed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sgl_entropy_bench.http.record import RequestRecord
from sgl_entropy_bench.http.replies import StreamError, error_text, reader_of
from sgl_entropy_bench.http.routes import Api, Output, body_of


def event(text: str, tokens: int, finish: Any = None, **meta: Any) -> bytes:
    held = {"finish_reason": finish, "prompt_tokens": 7, "completion_tokens": tokens, **meta}
    return json.dumps({"text": text, "output_ids": [1], "meta_info": held}).encode()


def read(api: Api, events: list[bytes], streamed: bool = True) -> RequestRecord:
    reader, record = reader_of(api), RequestRecord(0, "p", "b", "measured", 0.0)
    for number, data in enumerate(events):
        (reader.feed if streamed else reader.whole)(data, number + 1.0)
    reader.finish(record)
    return record


def chat(content: str | None = None, **more: Any) -> bytes:
    choices = [] if content is None else [{"delta": {"content": content}, "finish_reason": None}]
    return json.dumps({"choices": choices, **more}).encode()


def test_a_speculating_stream() -> None:
    last = {
        "spec_verify_ct": 2,
        "spec_emitted": 5,
        "spec_drafted": 8,
        "spec_accepted_by_position": [2, 1, 0, 0],
        "cached_tokens": 3,
        "dp_rank": 1,
        "easd_checks": 2,
        "easd_fires": 1,
    }
    record = read(
        "generate",
        [event("a", 1), event("abc", 4), event("abcd", 6, {"type": "stop"}, **last)],
    )
    assert record.chunks == [(1.0, 1), (2.0, 4), (3.0, 6)]
    assert (record.first, record.completion_tokens, record.prompt_tokens) == (1.0, 6, 7)
    assert (record.cycles, record.emitted, record.drafted) == (2, 5, 8)
    assert (record.accepted, record.cached_tokens, record.rank) == ([2, 1, 0, 0], 3, 1)
    assert (record.easd_checks, record.easd_fires, record.finish) == (2, 1, "stop")


@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_without_a_text_has_none(streamed: bool) -> None:
    """A server that leaves the text to its client sends null; that is not the word None."""
    last = json.loads(event("", 4, {"type": "stop"}))
    record = read("generate", [json.dumps(last | {"text": None}).encode()], streamed)
    assert (record.completion_tokens, record.text_hash) == (4, "")


def test_an_sglang_without_our_counters_still_gives_tau() -> None:
    record = read(
        "generate", [event("a", 1), event("abc", 9, {"type": "length"}, spec_verify_ct=4)]
    )
    assert (record.cycles, record.emitted, record.accepted) == (4, 8, None)


def test_text_that_looks_like_counts_is_not_taken_for_them() -> None:
    trap = '"meta_info": {"completion_tokens": 99}'
    record = read("generate", [event(trap, 1), event(trap * 2, 3, {"type": "stop"})])
    assert record.chunks == [(1.0, 1), (2.0, 3)]


def test_events_without_new_tokens_are_no_chunks() -> None:
    record = read("generate", [event("", 0), event("a", 1), event("a", 1, {"type": "stop"})])
    assert record.chunks == [(2.0, 1)]


def test_a_reply_that_is_not_streamed() -> None:
    record = read("generate", [event("abc", 3, {"type": "stop"})], streamed=False)
    assert (record.first, record.chunks, record.completion_tokens) == (None, [], 3)


def test_the_same_text_has_the_same_hash_on_every_route() -> None:
    usage = {"usage": {"prompt_tokens": 2, "completion_tokens": 2}}
    streamed = read("chat", [chat(""), chat("ab"), chat("cd"), chat(**usage)])
    assert streamed.chunks == [(2.0, None), (3.0, None)]
    whole = read("generate", [event("abcd", 3, {"type": "stop"})], streamed=False)
    assert streamed.text_hash == whole.text_hash
    assert streamed.completion_tokens == 2


def test_thoughts_are_output_too() -> None:
    thought = json.dumps({"choices": [{"delta": {"reasoning_content": "hm"}}]}).encode()
    usage = chat(usage={"prompt_tokens": 2, "completion_tokens": 3})
    record = read("chat", [thought, thought, chat("ab"), usage])
    assert record.chunks == [(1.0, None), (2.0, None), (3.0, None)]
    assert record.text_hash != read("chat", [chat("ab"), usage]).text_hash


@pytest.mark.parametrize(
    ("api", "events", "message"),
    [
        ("generate", [b'{"text": "a", "meta'], "not JSON"),
        ("generate", [event("a", 1)], "ended before the answer"),
        ("generate", [b'{"error": {"message": "too long"}}'], "too long"),
        ("generate", [event("a", 1, {"type": "abort", "message": "gone"})], "gone"),
        ("generate", [b'{"text": "a"}'], "no meta_info"),
        ("generate", [b"[1]"], "not JSON"),
        (
            "generate",
            [b'{"meta_info": {"finish_reason": {"type": "stop"}, "prompt_tokens": 1}}'],
            "counts no tokens",
        ),
        ("chat", [chat("a")], "without usage"),
        ("chat", [b"{"], "not JSON"),
        ("chat", [b"[]"], "no object"),
        ("chat", [b'{"error": "busy"}'], "busy"),
        ("completions", [b'{"choices": [{"text": "a", "finish_reason": "abort"}]}'], "aborted"),
    ],
)
def test_what_is_wrong_with_a_stream_is_told(api: Api, events: list[bytes], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        read(api, events)


def test_bodies() -> None:
    output = Output(9, ignore_eos=True, sampling={"top_p": 0.9})
    path, body = body_of("generate", "m", "hi", output)
    assert path == "/generate"
    assert body["sampling_params"] == {
        "max_new_tokens": 9,
        "temperature": 0.0,
        "ignore_eos": True,
        "top_p": 0.9,
    }
    path, body = body_of("chat", "m", "hi", output)
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["max_tokens"], body["ignore_eos"]) == (9, True)
    assert body["stream_options"] == {"include_usage": True}
    assert body_of("completions", "m", "hi", Output())[1]["prompt"] == "hi"


def test_error_bodies() -> None:
    assert error_text(b'{"error": {"message": "no room"}}') == "no room"
    assert error_text(b'{"message": "no room"}') == "no room"
    assert error_text(b"<html>") == "<html>"
