"""The client itself: it keeps its times when its event loop is busy, and takes chunks fast."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from sgl_entropy_bench.fakeserver import FakeServer
from sgl_entropy_bench.figures import clients
from sgl_entropy_bench.figures.peers import PeerLoad
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.http.record import read_records
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.run.pool import WorkerOutcome, drive
from sgl_entropy_bench.load.run.worker import Planned, WorkerTask


def closed(url: str, count: int, at_once: int, tokens: int, path: Path) -> WorkerOutcome:
    planned = tuple(Planned(i, 0.0, "measured", f"{i}", "b", f"prompt {i}") for i in range(count))
    task = WorkerTask(url, "generate", "m", Output(tokens, ignore_eos=True), planned, path, at_once)
    return drive([task], count, lambda tallies, elapsed: None)


def test_one_process_takes_ten_thousand_chunks_a_second(tmp_path: Path) -> None:
    """By its own processor time, since a busy machine gives it less than a core."""
    with FakeServer("--slots", "200", "--ttft", "0.001", "--cycle", "0.005", "--depth", "0") as one:
        tally = closed(one.url, 200, 100, 200, tmp_path / "records.jsonl").tallies[0]
    assert tally.chunks == 200 * 200
    assert tally.errors == 0
    assert tally.chunks / tally.cpu_s > 10_000


def test_a_server_that_does_not_take_a_connection_is_called_so(tmp_path: Path) -> None:
    """A full queue drops whoever knocks; the limit is that of a byte, not of the whole request."""
    with socket.socket() as full, ExitStack() as held:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        planned = (Planned(0, 0.0, "measured", "0", "b", "prompt"),)
        records = tmp_path / "records.jsonl"
        task = WorkerTask(url, "generate", "m", Output(9), planned, records, 1, stall_s=0.3)
        drive([task], 1, lambda tallies, elapsed: None)
    (record,) = read_records(records)
    assert record.error == "no connection within 0.3 s"


@pytest.mark.parametrize("busy", [0.0, 0.5])
def test_requests_leave_when_they_should(busy: float, tmp_path: Path) -> None:
    """One of three tries, as servers that start beside it may take every core for a while."""
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with FakeServer("--ttft", "0.005", "--cycle", "0.002", "--slots", "999") as server:
            sent = clients._ours(PeerLoad(server.url, folder, 100.0, 150, 8, seed=0), busy)
            arrived = Client.from_url(server.url).get("/fake_arrivals")
            kept = clients.row_of("ours", 100.0, busy, sent, arrived)
        if kept.lag_p99_s < 0.2:
            break
    # A lag of 0.2 s over the 1.5 s of the run.
    assert kept.achieved_rate == pytest.approx(kept.scheduled_rate, rel=0.14)
    assert kept.lag_p99_s < 0.2  # a busy machine; the figure says what a quiet one does
