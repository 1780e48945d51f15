"""How the fake server's tests talk to it: raw sockets, and the project's client."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

from sgl_entropy_bench.http.client import Client

from tests.scripted_server import ScriptedServer

Json = dict[str, Any]

QUICK = ("--ttft", "0.002", "--cycle", "0.001")
AT_ONCE = ("--ttft", "0", "--cycle", "0")
MESSAGES = [{"role": "user", "content": "Tell me a story."}]
GENERATE = {"text": "a prompt", "sampling_params": {"max_new_tokens": 12, "ignore_eos": True}}
CHAT = {"messages": MESSAGES, "max_tokens": 12, "stream_options": {"include_usage": True}}


def client_of(server: ScriptedServer) -> Client:
    return Client.from_url(server.url, timeout_s=10.0)


def request_bytes(path: str, body: Json) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: fake\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def opened(server: ScriptedServer, path: str = "/generate", **fields: Any) -> socket.socket:
    """A connection that has sent a streamed request and read nothing."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    body = GENERATE if path == "/generate" else CHAT
    connection.sendall(request_bytes(path, {**body, "stream": True, **fields}))
    return connection


def read(connection: socket.socket, silence_s: float = 5.0) -> tuple[bytes, bool]:
    """All bytes until an answer's end or silence (False), or the connection's end (True)."""
    data = bytearray()
    connection.settimeout(silence_s)
    try:
        while piece := connection.recv(2**20):
            data += piece
            head = data.find(b"\r\n\r\n") + 4
            size = re.search(rb"Content-Length: (\d+)", data[:head])
            if len(data) >= head + int(size[1]) if size else data.endswith(b"\r\n0\r\n\r\n"):
                return bytes(data), False
    except TimeoutError:
        return bytes(data), False
    return bytes(data), True


def data_lines(answer: bytes) -> list[bytes]:
    return [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: ")]


def until(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


def loads(client: Client, key: str = "num_reqs") -> list[int]:
    return [rank[key] for rank in client.get("/get_load")]


def reaches(client: Client, expected: list[int], key: str = "num_reqs") -> bool:
    """Whether the ranks' loads become these."""
    return until(lambda: loads(client, key) == expected)
