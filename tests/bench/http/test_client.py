"""The client against a real socket."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from sgl_entropy_bench.http.client import Client, ServerError

from tests.scripted_server import Reply, scripted

Fake = Callable[..., Client]


def test_generate_streams_ids_counts_and_times(fake_client: Fake) -> None:
    client = fake_client("--per-cycle", "3", "--cycle-s", "0.02")
    done = client.generate(text="a prompt", max_new_tokens=10)
    assert len(set(done.output_ids)) == len(done.text.split()) == 10
    assert (done.completion_tokens, done.finish) == (10, "length")
    assert (done.cycles, done.emitted) == (3, 9)
    assert [arrival.tokens for arrival in done.arrivals] == [1, 4, 7, 10]
    assert done.begun_s < done.first_s < done.ended_s
    assert done.seconds >= 0.08


def test_an_answer_without_a_text_is_empty() -> None:
    meta = {"finish_reason": {"type": "stop"}, "completion_tokens": 1}
    events = Reply.events({"text": None, "meta_info": meta})
    with scripted(lambda request: events) as server:
        assert Client.from_url(server.url).generate(text="a").text == ""


def test_generate_takes_ids(fake_client: Fake) -> None:
    client = fake_client()
    done = client.generate(input_ids=[5, 6], max_new_tokens=4)
    assert len(done.output_ids) == 4
    assert done.output_ids != client.generate(input_ids=[5, 7], max_new_tokens=4).output_ids
    assert (done.cycles, done.emitted) == (0, 0)


def test_generate_wants_one_prompt(fake_client: Fake) -> None:
    with pytest.raises(ValueError, match="text or input_ids"):
        fake_client().generate(text="a", input_ids=[1])


def test_chat_joins_the_pieces(fake_client: Fake) -> None:
    done = fake_client("--per-cycle", "2").chat(
        [{"role": "user", "content": "hello"}], max_new_tokens=7
    )
    assert len(done.text.split()) == 7
    assert done.completion_tokens == 7
    assert done.finish == "length"


def test_a_refusal_carries_status_and_message(fake_client: Fake) -> None:
    with pytest.raises(ServerError, match="400 text: the prompt is empty") as caught:
        fake_client().generate(text="")
    assert caught.value.status == 400


def test_an_error_within_a_stream_is_an_error(fake_client: Fake) -> None:
    with pytest.raises(ServerError, match="made-up failure") as caught:
        fake_client("--error-in-stream").generate(text="a")
    assert caught.value.status == 400


def test_a_stream_that_breaks_off_is_an_error(fake_client: Fake) -> None:
    """Half an answer must never be taken for a whole one."""
    with pytest.raises(ServerError, match="broke off"):
        fake_client("--break-off").generate(text="a", max_new_tokens=3)


def test_closing_a_stream_aborts_the_request(fake_client: Fake) -> None:
    client = fake_client("--cycle-s", "0.02")
    body = {"text": "long", "sampling_params": {"max_new_tokens": 5000}}
    events = client.events("/generate", body)
    next(events)
    assert client.get("/get_load")[0]["num_reqs"] == 1
    events.close()
    deadline = time.monotonic() + 5
    while client.get("/get_load")[0]["num_reqs"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.get("/get_load")[0]["num_reqs"] == 0


def test_nobody_listening_is_not_healthy() -> None:
    client = Client("127.0.0.1", 1)
    assert not client.healthy()
    with pytest.raises(ServerError, match="ConnectionRefusedError"):
        client.get("/health")


def test_a_server_by_its_url() -> None:
    client = Client.from_url("http://127.0.0.1:30000/")
    assert (client.host, client.port) == ("127.0.0.1", 30000)
    assert Client.from_url("http://host").port == 80
    for wrong in ("localhost:3", "https://host:1", "http://", "http://host:x", "http://host/v1"):
        with pytest.raises(ValueError, match="http://HOST:PORT"):
            Client.from_url(wrong)
