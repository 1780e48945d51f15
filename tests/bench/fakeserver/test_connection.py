"""The fake server's HTTP: bad requests, many requests, slow readers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.bench.fakeserver.clients import (
    AT_ONCE,
    GENERATE,
    QUICK,
    client_of,
    data_lines,
    opened,
    reaches,
    read,
    request_bytes,
)
from tests.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedServer]:
    """A quick server without faults, for tests that leave nothing behind."""
    with ScriptedServer(*QUICK) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/generate", {"text": ""}, 400, "the prompt is empty"),
        ("/generate", {"input_ids": []}, 400, "the prompt is empty"),
        ("/generate", {}, 400, "should be provided"),
        ("/generate", {"text": "a", "input_ids": [1]}, 400, "should be provided"),
        ("/generate", {"input_ids": [1, "2"]}, 400, "list of token ids"),
        ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": "9"}}, 400, "type int"),
        ("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 10**6}}, 400, "exceeds"),
        ("/generate", [], 400, "not a JSON object"),
        ("/v1/completions", {"prompt": ""}, 400, "the prompt is empty"),
        ("/v1/chat/completions", {"messages": []}, 400, "Messages cannot be empty"),
        ("/v1/chat/completions", {"messages": ["hi"]}, 400, "must be an object"),
        ("/v1/embeddings", {}, 404, "Not Found"),
        ("/health", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_refused(
    plain: ScriptedServer, path: str, body: Any, status: int, message: str
) -> None:
    connection = HTTPConnection("127.0.0.1", plain.port, timeout=10)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    assert response.status == status
    assert message in error["message"]
    assert error.get("code") == (None if path == "/generate" else status)
    # The connection is as good as before.
    connection.request("POST", "/generate", "{")
    response = connection.getresponse()
    assert "not JSON" in json.loads(response.read())["error"]["message"]
    connection.close()


def test_what_is_not_http_is_refused_and_closed(plain: ScriptedServer) -> None:
    for request, status in (
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"505"),
        (b"POST /generate HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /generate HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"x" * 70000, b"431"),
    ):
        with socket.create_connection(("127.0.0.1", plain.port), timeout=10) as connection:
            connection.sendall(request)
            answer, _ = read(connection)
            assert answer[9:12] == status
            assert connection.recv(1) == b""


def test_a_connection_serves_many_requests(plain: ScriptedServer) -> None:
    """One after the other, two sent at once, and one in many pieces."""
    stream = request_bytes("/generate", {**GENERATE, "stream": True})
    with socket.create_connection(("127.0.0.1", plain.port), timeout=10) as connection:
        for number in range(40, len(stream) + 40, 40):
            connection.sendall(stream[number - 40 : number])
            time.sleep(0.001)
        first, _ = read(connection)
        connection.sendall(stream * 2)
        second = b""
        while second.count(b"[DONE]") < 2 and (piece := connection.recv(65536)):
            second += piece
    assert len(data_lines(first)) > 2
    assert data_lines(second).count(data_lines(first)[0]) == 0, "request ids differ"
    texts = {json.loads(data_lines(answer)[-2])["text"] for answer in (first, second)}
    assert len(texts) == 1


def test_a_client_that_does_not_read_gets_fewer_events() -> None:
    """Written out in full, the events of this stream would be hundreds of megabytes."""
    with ScriptedServer(*AT_ONCE) as server:
        parameters = {"max_new_tokens": 20000, "ignore_eos": True}
        with opened(server, sampling_params=parameters) as connection:
            assert reaches(client_of(server), [0])
            answer, _ = read(connection)
    *events, last, done = data_lines(answer)
    assert len(json.loads(last)["output_ids"]) == 20000
    assert done == b"[DONE]"
    assert 0 < len(events) < json.loads(last)["meta_info"]["spec_cycles"]
    assert len(answer) < 50e6
