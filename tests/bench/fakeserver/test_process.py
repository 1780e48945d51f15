"""The fake server as a process: how it starts and ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import pytest
from sgl_entropy_bench.fakeserver import FakeServer

from tests.bench.fakeserver.clients import opened


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_in_the_middle_of_streams(number: signal.Signals) -> None:
    with FakeServer("--ttft", "0.001", "--cycle", "0.01") as server, opened(server) as connection:
        assert connection.recv(1) == b"H"
        server.process.send_signal(number)
        assert server.process.wait(timeout=2) == 0


def test_the_server_ends_with_its_block_and_with_its_owner() -> None:
    server = FakeServer()
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert server.process.poll() == 0
    with FakeServer() as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(timeout=2) == 0


def test_a_server_that_does_not_come_up_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "sgl_entropy_bench.fakeserver", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
        with pytest.raises(RuntimeError, match="did not come up"):
            FakeServer("--port", port).__enter__()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert f"port {port}: address already in use" in ended.stderr
