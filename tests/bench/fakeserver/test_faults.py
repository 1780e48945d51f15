"""The fake server's faults as clients see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sgl_entropy_bench.fakeserver.settings import FAULTS
from sgl_entropy_bench.http.client import ServerError

from tests.bench.fakeserver.clients import (
    CHAT,
    GENERATE,
    QUICK,
    client_of,
    data_lines,
    loads,
    opened,
    reaches,
    read,
)
from tests.scripted_server import ScriptedServer

# fault -> status, whether the connection closes, [DONE], HTTP's end, lines that are not JSON
SEEN: dict[str, tuple[bytes, bool, bool, bool, int]] = {
    "status": (b"503", False, False, False, 0),
    "refuse": (b"", True, False, False, 0),
    "stall": (b"200", False, False, False, 0),
    "drop": (b"200", True, False, False, 1),
    "broken-sse": (b"200", False, True, True, 1),
    "no-done": (b"200", False, False, True, 0),
    "no-usage": (b"200", False, True, True, 0),
    "abort": (b"200", False, True, True, 0),
}


@pytest.fixture(scope="module")
def faulty() -> Iterator[Callable[[str], ScriptedServer]]:
    """``faulty("drop")``: a server that breaks every second request so, the first not."""
    servers: dict[str, ScriptedServer] = {}
    with ExitStack() as stack:

        def get(fault: str) -> ScriptedServer:
            if fault not in servers:
                servers[fault] = stack.enter_context(
                    ScriptedServer(*QUICK, "--fault", fault, "--fault-every", "2")
                )
            client_of(servers[fault]).generate(text="a prompt that is served as it should be")
            return servers[fault]

        yield get


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(faulty: Callable[[str], ScriptedServer], fault: str, path: str) -> None:
    """As a client sees them that knows nothing but sockets."""
    server = faulty(fault)
    with opened(server, path) as connection:
        answer, closed = read(connection, 0.5 if fault == "stall" else 5.0)
        lines = data_lines(answer)
        broken = [line for line in lines if not is_json(line) and line != b"[DONE]"]
        assert (
            answer[9:12],
            closed,
            lines[-1:] == [b"[DONE]"],
            answer.endswith(b"\r\n0\r\n\r\n"),
            len(broken),
        ) == SEEN[fault]
        assert loads(client_of(server)) == [int(fault == "stall")]
        events = [json.loads(line) for line in lines if is_json(line)]
    # chat's first token comes with an event for the role
    first = 1 if path == "/generate" else 2
    if fault in ("status", "refuse"):
        assert events == []
    elif fault == "stall":
        assert len(events) == first
    else:
        assert len(events) >= first + (fault != "drop")
    if fault == "status":
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error.pop("message") == "made-up failure"
        assert error == ({} if path == "/generate" else {"code": 503})
    assert (b"_tokens" in answer.replace(b"cached_tokens", b"")) == (
        fault not in ("status", "refuse", "no-usage")
        and (path == "/generate" or fault in ("broken-sse", "no-done", "abort"))
    )
    if fault == "abort" and path == "/generate":
        meta = events[-1]["meta_info"]
        assert meta["finish_reason"]["status_code"] == 500
        assert meta["completion_tokens"] > 1
    elif fault == "abort":
        assert events[-2]["choices"][0]["finish_reason"] == "abort"
    # A client that goes takes its request with it, even a stalled one.
    assert reaches(client_of(server), [0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status", "503 made-up failure"),
        ("refuse", "RemoteDisconnected"),
        ("drop", "IncompleteRead|broke off"),
        ("no-done", "broke off"),
        ("abort", "aborted: made-up abort"),
    ],
)
def test_faults_are_errors_of_the_client(
    faulty: Callable[[str], ScriptedServer], fault: str, message: str
) -> None:
    with pytest.raises(ServerError, match=message):
        client_of(faulty(fault)).generate(text="a prompt", max_new_tokens=12)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("status", "503 made-up failure"),
        ("refuse", "RemoteDisconnected"),
        ("stall", "TimeoutError"),
        ("drop", "IncompleteRead"),
        ("abort", "500 made-up abort"),
    ],
)
def test_faults_of_answers_in_one_piece(
    faulty: Callable[[str], ScriptedServer], fault: str, message: str
) -> None:
    client = client_of(faulty(fault))
    with pytest.raises(ServerError, match=message):
        client.post("/generate", GENERATE, timeout_s=0.5 if fault == "stall" else 5.0)
    assert reaches(client, [0])


def test_broken_and_bare_answers_in_one_piece(faulty: Callable[[str], ScriptedServer]) -> None:
    assert client_of(faulty("broken-sse")).post("/generate", GENERATE) is None
    bare = client_of(faulty("no-usage")).post("/v1/chat/completions", CHAT)
    assert bare["choices"]
    assert "usage" not in bare


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
