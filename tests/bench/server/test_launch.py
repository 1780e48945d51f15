"""Starting and ending servers: nothing may be left behind, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sgl_entropy_bench.server import launch as servers
from sgl_entropy_bench.server.launch import Server, StartError, likely_cause
from sgl_entropy_bench.server.processes import allocated_bytes, memory_bytes, session_members

from tests.bench.conftest import PROGRAM

Launch = Callable[..., Server]


def gone(pids: list[int], within_s: float = 10.0) -> bool:
    """Whether none of these processes runs any more (zombies do not run)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    return state(pid) not in "ZX"


def state(pid: int) -> str:
    """A process's state letter; X where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return stat[stat.rindex(")") + 2]


def test_a_server_answers_and_leaves_nothing(launch: Launch) -> None:
    with launch("--children", "2", "--ready-after", "0.5").start() as server:
        # supervisor, server and two stubborn orphans
        pids = server.pids()
        assert len(pids) == 4
        assert server.client.generate(text="hi", max_new_tokens=3).completion_tokens == 3
        assert server.startup_s >= 0.5
        assert server.memory_bytes() > 5 * 2**20
    assert gone(pids, within_s=0.0 + 0.5)
    assert not server.alive()
    assert server.pids() == []


def test_an_exception_ends_the_server(launch: Launch) -> None:
    server = launch("--children", "1").start()
    pids = server.pids()
    assert len(pids) == 3
    with pytest.raises(ZeroDivisionError), server:
        raise ZeroDivisionError
    assert gone(pids, within_s=0.5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_owner(tmp_path: Path, number: signal.Signals) -> None:
    """Even where the owner is killed and can clean nothing up."""
    code = f"""
import sys, time
from pathlib import Path
from sgl_entropy_bench.server.launch import Server, free_port
port = free_port()
command = [sys.executable, *{PROGRAM!r}, "--port", str(port), "--children", "1"]
with Server("fake", command, port, Path({str(tmp_path / "log")!r})).start() as server:
    print(*server.pids(), flush=True)
    time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 3
    assert all(running(pid) for pid in pids)
    owner.send_signal(number)
    owner.wait(timeout=20)
    assert gone(pids)


def test_a_server_that_ends_tells_why(launch: Launch) -> None:
    message = "launch_server.py: error: argument: invalid choice: 'EDSD' (choose from 'EAGLE')"
    with pytest.raises(StartError) as caught:
        launch("--fail-with", message).start()
    text = str(caught.value)
    assert "exit status 1" in text
    assert "sgl-entropy patch apply" in text
    assert f"| {message}" in text


def test_a_server_that_never_comes_up_is_ended(launch: Launch) -> None:
    server = launch("--ready-after", "1000", ready_timeout_s=1.0)
    seen: list[int] = []
    with pytest.raises(StartError, match="not up in"):
        server.start(lambda _: seen.extend(server.pids()))
    assert seen
    assert gone(sorted(set(seen)), within_s=0.5)


def test_a_server_that_dies_when_asked_is_a_start_error(launch: Launch) -> None:
    with pytest.raises(StartError, match=r"cannot answer.*made-up failure"):
        launch("--error-in-stream").start()


def test_a_taken_port_is_told_before_anything_starts(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch(port=port)
        with pytest.raises(StartError, match=f"port {port} is in use"):
            server.start()
        assert server.pids() == []


def test_paused_processes_do_not_run_and_still_can_be_ended(launch: Launch) -> None:
    server = launch().start()
    pids = server.pids()
    server.pause()
    deadline = time.monotonic() + 5
    while state(pids[-1]) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(pids[-1]) == "T"
    assert state(pids[0]) != "T", "the supervisor must be able to act"
    server.resume()
    assert server.client.healthy()
    server.pause()
    server.stop()
    assert gone(pids, within_s=0.5)


def test_causes_are_looked_for_in_order() -> None:
    assert "patch apply" in likely_cause("No module named 'sgl_kernel'", 1)
    assert "make env" in likely_cause("ModuleNotFoundError: No module named 'orjson'", 1)
    assert "memory" in likely_cause("", 137)
    assert "hangs" in likely_cause("", None)


def test_the_supervisor_refuses_a_session_that_is_not_its_own() -> None:
    """There it would end its caller's processes, this test among them."""
    done = subprocess.run(
        [sys.executable, "-m", "sgl_entropy_bench.server.supervise", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "session of its own" in done.stderr


def test_free_ports_are_free() -> None:
    assert servers.port_is_free(servers.free_port())


def test_this_process_is_in_its_session() -> None:
    assert os.getpid() in session_members(os.getsid(0))


MAPPER = """
import mmap, sys, time
file = open(sys.argv[1], "rb")
pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
held = bytearray(b"x") * int(sys.argv[2])
sum(pages[i] for i in range(0, len(pages), 4096))
print("ready", flush=True)
time.sleep(60)
"""


def test_another_process_does_not_move_what_a_server_allocated(tmp_path: Path) -> None:
    """A neighbour that maps the same file takes half of its pages, and gives them back."""
    size = 48 * 2**20
    (tmp_path / "library").write_bytes(b"x" * size)

    def start(held: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MAPPER, str(tmp_path / "library"), str(held)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    server, neighbour = start(size), start(0)
    try:
        shared, own = memory_bytes([server.pid]), allocated_bytes([server.pid])
        neighbour.kill()
        neighbour.wait()
        assert memory_bytes([server.pid]) - shared > 0.4 * size
        assert abs(allocated_bytes([server.pid]) - own) < 2**20
        assert size < own < 1.5 * size
    finally:
        for child in (server, neighbour):
            child.kill()
            child.wait()
