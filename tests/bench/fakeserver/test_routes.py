"""The fake server's routes: generation, aborts, cache, health."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator

import pytest
from sgl_entropy_bench.http.client import Client, ServerError

from tests.bench.fakeserver.clients import (
    CHAT,
    GENERATE,
    MESSAGES,
    QUICK,
    client_of,
    data_lines,
    loads,
    opened,
    reaches,
    read,
    until,
)
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a quick server without faults, for tests that leave nothing behind."""
    with ScriptedServer(*QUICK) as server:
        yield client_of(server)


def test_generate_streams_cumulative_events(client: Client) -> None:
    events = list(client.events("/generate", {**GENERATE, "rid": "mine"}))
    for before, after in itertools.pairwise(events):
        assert after["text"].startswith(before["text"] + " ")
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
    for event in events:
        meta = event["meta_info"]
        assert meta["completion_tokens"] == len(event["output_ids"]) == len(event["text"].split())
        assert (meta["id"], meta["prompt_tokens"], meta["dp_rank"]) == ("mine", 2, 0)
        assert (meta["finish_reason"] is None) == (event is not events[-1])
        assert ("spec_verify_ct" in meta) == ("e2e_latency" in meta) == (event is events[-1])
    assert [len(event["output_ids"]) for event in (events[0], events[-1])] == [1, 12]
    last = events[-1]["meta_info"]
    assert last["finish_reason"] == {"type": "length", "length": 12}
    # one event a cycle, and one of the prefill
    assert last["spec_cycles"] == last["spec_verify_ct"] == len(events) - 1
    assert last["spec_drafted"] == 4 * last["spec_cycles"]
    assert last["spec_emitted"] == 11
    assert last["spec_accept_length"] == 12 / last["spec_cycles"]
    accepted = last["spec_accepted_by_position"]
    assert accepted == sorted(accepted, reverse=True)
    assert len(accepted) == 4
    # All emitted but one a cycle were accepted; the last cycle may end inside the draft.
    assert sum(accepted) + last["spec_cycles"] - last["spec_emitted"] in (0, 1)
    assert "easd_checks" not in last


def test_the_client_reads_every_route(client: Client) -> None:
    """Streamed or not, by either route, a prompt's text is the same."""
    done = client.generate(text="a prompt", max_new_tokens=12, sampling={"ignore_eos": True})
    assert done.emitted == 11
    assert done.finish == "length"
    whole = client.post("/generate", GENERATE)
    assert (whole["text"], tuple(whole["output_ids"])) == (done.text, done.output_ids)
    assert whole["meta_info"]["spec_emitted"] == 11

    body = {"prompt": "a prompt", "max_tokens": 12, "ignore_eos": True, "model": "@text@"}
    usage = {"stream_options": {"include_usage": True}}
    *events, last = client.events("/v1/completions", {**body, **usage})
    assert "".join(event["choices"][0]["text"] for event in events) == done.text
    assert [event["choices"][0]["finish_reason"] for event in events[-2:]] == [None, "length"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    answer = client.post("/v1/completions", body)
    assert answer["choices"][0]["text"] == done.text
    assert answer["model"] == "@text@"

    talk = client.chat(MESSAGES, max_new_tokens=12, ignore_eos=True)
    assert (talk.prompt_tokens, talk.completion_tokens, talk.finish) == (6, 12, "length")
    answer = client.post("/v1/chat/completions", {**CHAT, "ignore_eos": True})
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": talk.text,
        "reasoning_content": None,
        "tool_calls": None,
    }
    assert len(talk.text.split()) == answer["usage"]["completion_tokens"] == 12


def test_chat_without_usage_asked_for_has_none(client: Client) -> None:
    events = list(client.events("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}))
    assert all(event["choices"] for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", "")
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert deltas[-1]["content"] is None


def test_an_abort_by_id_ends_running_and_waiting_requests() -> None:
    """SGLang takes the id for a prefix, and so has to be asked for whole ones."""
    with ScriptedServer("--slots", "1", "--ttft", "0.01", "--cycle", "60") as server:
        client = client_of(server)
        with opened(server, rid="run-1") as running, opened(server, rid="run-10") as waiting:
            assert reaches(client, [2])
            with pytest.raises(ServerError, match="400 Duplicate request ID"):
                client.post("/generate", {**GENERATE, "rid": "run-1"})
            client.post("/abort_request", {"rid": "another"})
            assert loads(client) == [2]
            client.post("/abort_request", {"rid": "run-1"})
            for connection in (running, waiting):
                answer, _ = read(connection)
                last, done = data_lines(answer)[-2:]
                assert json.loads(last)["meta_info"]["finish_reason"]["type"] == "abort"
                assert done == b"[DONE]"
        assert loads(client) == [0]


def test_the_cache_knows_prompts_since_the_last_flush() -> None:
    text = "a prompt of nine tokens, that is of 33 to 36."[:35]

    def cached(client: Client) -> int:
        meta = client.generate(text=text, max_new_tokens=1).raw
        assert meta["prompt_tokens"] == 9
        return int(meta["cached_tokens"])

    with ScriptedServer(*QUICK) as server, ScriptedServer(*QUICK, "--no-cache") as without:
        client = client_of(server)
        assert [cached(client), cached(client)] == [0, 8]
        assert len(client.get("/fake_arrivals")) == 2
        client.post("/flush_cache")
        assert cached(client) == 0
        (came,) = client.get("/fake_arrivals")
        assert 0 <= time.monotonic() - came < 10
        assert [cached(client_of(without)) for _ in range(2)] == [0, 0]


def test_health_waits_for_the_start() -> None:
    begun = time.monotonic()
    with ScriptedServer("--start-delay", "1") as server:
        client = client_of(server)
        with pytest.raises(ServerError) as caught:
            client.get("/health")
        assert caught.value.status == 503
        assert until(client.healthy)
        assert time.monotonic() - begun >= 1
        client.get("/health_generate")
        assert client.get("/get_model_info") == {"model_path": "fake"}
        assert client.get("/v1/models")["data"][0]["id"] == "fake"
