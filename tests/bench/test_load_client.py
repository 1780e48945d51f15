"""The client itself: it keeps its times when its event loop is busy, and takes chunks fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sgl_entropy_bench.client import Client
from sgl_entropy_bench.fakeserver import FakeServer
from sgl_entropy_bench.figures import clients
from sgl_entropy_bench.load.pool import Outcome, drive
from sgl_entropy_bench.load.routes import Output
from sgl_entropy_bench.load.worker import Planned, Task


def closed(url: str, count: int, at_once: int, tokens: int, path: Path) -> Outcome:
    planned = tuple(Planned(i, 0.0, "measured", f"{i}", "b", f"prompt {i}") for i in range(count))
    task = Task(url, "generate", "m", Output(tokens, ignore_eos=True), planned, path, at_once)
    return drive([task], count, lambda tallies, elapsed: None)


def test_one_process_takes_ten_thousand_chunks_a_second(tmp_path: Path) -> None:
    """By its own processor time, since a busy machine gives it less than a core."""
    with FakeServer("--slots", "200", "--ttft", "0.001", "--cycle", "0.005", "--depth", "0") as one:
        tally = closed(one.url, 200, 100, 200, tmp_path / "records.jsonl").tallies[0]
    assert tally.chunks == 200 * 200
    assert tally.errors == 0
    assert tally.chunks / tally.cpu_s > 10_000


@pytest.mark.parametrize("busy", [0.0, 0.5])
def test_requests_leave_when_they_should(busy: float) -> None:
    with FakeServer("--ttft", "0.005", "--cycle", "0.002", "--slots", "999") as server:
        times, cpu = clients._ours(server.url, 100.0, 300, busy)
        found = clients._judged(times, Client.from_url(server.url).get("/fake_arrivals"), cpu)
    assert found["achieved_rate"] == pytest.approx(found["scheduled_rate"], rel=0.02)
    assert found["lag_p99_s"] < 0.2  # a busy machine; the figure says what a quiet one does


def test_lag_is_seen_where_there_is_some() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    found = clients._judged(times, [7.0, 8.5, 9.5, 10.5, 12.0], 0.01)
    assert (found["lag_max_s"], found["scheduled_rate"]) == (1.0, 1.0)
    assert found["achieved_rate"] == pytest.approx(0.8)
    assert found["cpu_ms_a_request"] == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="3 requests came, 5"):
        clients._judged(times, [1.0, 2.0, 3.0], 0.01)


def test_the_page_says_by_how_much_a_rate_was_missed() -> None:
    row = {"client": "x", "rate": 40.0, "busy": 0.5, "requests": 5, "scheduled_rate": 40.0}
    row |= {"achieved_rate": 30.0, "lag_p99_s": 0.2, "lag_max_s": 0.3, "cpu_ms_a_request": 1.0}
    page = clients.page({"seconds": 4.0, "rows": [row]})
    assert "| x | 40 | half busy | 40.00 | 30.00 (-25.0%) | 200.0 | 300.0 | 1.00 |" in page


def test_another_client_is_run_as_it_is_and_its_gaps_are_noted(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import asyncio, sys\nimport numpy as np\nnp.random.seed(1)\n"
        "async def go():\n"
        "    for _ in range(3): await asyncio.sleep(np.random.exponential(0.01))\n"
        "asyncio.run(go())\nprint(sys.argv[1:])\n"
    )
    notes = tmp_path / "notes.json"
    command = [sys.executable, "-m", "sgl_entropy_bench.figures.peer", "--notes", str(notes)]
    done = subprocess.run(
        [*command, "--busy", "0.3", "other", "--rate", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['--rate', '3']"
    held = json.loads(notes.read_text())
    import numpy as np

    expected = np.random.RandomState(1).exponential(0.01, 3)
    assert held["gaps"] == pytest.approx(list(expected))
    assert held["cpu_s"][0] > 0
