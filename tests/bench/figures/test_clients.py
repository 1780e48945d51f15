"""The figure of load testers: schedules and lags, other testers run as they are or missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sgl_entropy_bench.figures import clients, peers
from sgl_entropy_bench.figures.clients import ClientFacts, ClientRow, ClientsFigure
from sgl_entropy_bench.figures.peers import Peer, PeerLoad, Sent

from sgl_entropy.cli import main

# Sends on another thread, so that the event loop stays free, and sleeps for the drawn gaps.
TOY = """
import asyncio, json, sys, urllib.request
import numpy as np

async def go():
    url, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    body = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 1}}).encode()
    np.random.gamma(1.0, 9.0)  # of a warm-up, before the load
    gaps = np.random.gamma(shape=1.0, scale=np.full(3, 9.0))  # no gap between requests
    gaps = [np.random.gamma(shape=1.0, scale=1 / rate) for _ in range(count)]
    for gap in gaps:
        await asyncio.sleep(gap * count / rate / sum(gaps))
        await asyncio.to_thread(urllib.request.urlopen, url + "/generate", body)

np.random.seed(1)
asyncio.run(go())
print("Successful requests:    ", sys.argv[2])
"""
SAYS_FOUR = "print('Successful requests: 4');"


def toy(folder: Path, source: str = TOY, name: str = "toy_tester") -> Peer:
    """A load tester installed in ``folder``, version 1.2."""
    package = folder / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "tool.py").write_text(source)
    (folder / f"{name}-1.2.dist-info").mkdir(exist_ok=True)
    (folder / f"{name}-1.2.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.2\n")
    return Peer(
        "toy",
        f"{name}.tool",
        lambda load: [load.url, str(load.count), str(load.rate)],
        peers._scaled,
        "keeps time like this",
        f"pip install --target DIR {name}",
    )


def load(count: int = 4, rate: float = 2.0) -> PeerLoad:
    return PeerLoad("http://nowhere", Path("tokenizer"), rate, count, tokens=8, seed=0)


def test_schedules_from_gaps() -> None:
    """One tester waits after each request, the other before each and on the whole for 4 / 2 s."""
    assert peers._after_each([1.0, 2.0, 3.0, 4.0], load()) == [0.0, 1.0, 3.0, 6.0]
    assert peers._scaled([1.0, 2.0, 3.0, 4.0], load()) == pytest.approx([0.2, 0.6, 1.2, 2.0])


def test_a_tester_is_run_as_it_is_and_its_draws_are_noted(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import asyncio, sys, time\nimport numpy as np\nnp.random.seed(1)\n"
        "while time.process_time() < 0.5: pass\n"
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
    gaps, cpu = zip(*held["draws"], strict=True)
    assert gaps == pytest.approx(list(expected))
    assert 0.5 <= cpu[0] <= cpu[1] <= cpu[2] <= held["cpu_s"]
    assert held["version"] == ""


def test_lag_is_seen_where_there_is_some() -> None:
    sent = Sent([0.0, 1.0, 2.0, 3.0, 4.0], cpu_s=0.01)
    found = clients.row_of("x", 1.0, 0.0, sent, [7.0, 8.5, 9.5, 10.5, 12.0])
    assert (found.lag_max_s, found.scheduled_rate) == (1.0, 1.0)
    assert found.achieved_rate == pytest.approx(0.8)
    assert found.cpu_ms_a_request == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="3 requests came, 5"):
        clients.row_of("x", 1.0, 0.0, sent, [1.0, 2.0, 3.0])


def test_the_page_says_by_how_much_a_rate_was_missed_and_by_whom() -> None:
    row = ClientRow(5, 40.0, 30.0, 0.2, 0.3, 1.0, client="x", rate=40.0, busy=0.5)
    who = {"x": ClientFacts("1.2", "sleeps"), "y": ClientFacts("", "rests")}
    page = clients.page(ClientsFigure(4.0, who, ["z"], [row]))
    assert "| x | 40 | half busy | 40.00 | 30.00 (-25.0%) | 200.0 | 300.0 | 1.00 |" in page
    assert "- `x` 1.2 sleeps.\n- `y` rests.\n- `z` was not installed.\n" in page


def test_the_figure_takes_the_testers_that_are_there_and_says_which_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Peer("other", "not_there.at_all", lambda load: [], peers._scaled, "", "pip install it")
    monkeypatch.setattr(peers, "PEERS", (toy(tmp_path), absent))
    monkeypatch.setattr(clients, "RATES", (20.0,))
    monkeypatch.setattr(clients, "BUSY", (0.0,))
    data, page = clients.measure(tmp_path, quick=True, peer_path=tmp_path)
    assert [row.client for row in data.rows] == ["sgl-entropy bench", "toy"]
    assert data.clients["toy"] == ClientFacts("1.2", "keeps time like this")
    assert data.missing == ["other"]
    ours, its = data.rows
    assert its.requests == 80
    # Drawn before the load, a gap of 9 s would show.
    assert its.scheduled_rate == pytest.approx(20.0, rel=0.1)
    # It sleeps for gaps: what a request takes adds up.
    assert its.lag_max_s > ours.lag_max_s
    assert "`other` was not installed" in page
    said = capsys.readouterr().err
    assert "not installed, the figure goes without: other\n" in said
    assert "pip install it" in said
    assert "toy_tester" not in said


def test_a_folder_without_testers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()  # not a package
    with pytest.raises(ValueError, match="found none") as caught:
        peers.installed(tmp_path)
    assert "--target DIR vllm==0.13.0" in str(caught.value)
    (tmp_path / "vllm" / "__init__.py").write_text("")
    assert "vllm bench serve" in [peer.name for peer in peers.installed(tmp_path)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit('no such flag')", "toy failed:\nno such flag"),
        ("print('Successful requests: 3')", "toy: expected 4 successful requests, it reports 3"),
        ("print('done')", "toy: expected 4 successful requests, it reports none:\ndone"),
        (SAYS_FOUR, "toy 1.2 drew 0 gaps for 4 requests"),
        (SAYS_FOUR + "import numpy; numpy.random.gamma(1.0)", "drew 1 gaps for 4 requests"),
    ],
)
def test_a_tester_that_fails_or_whose_schedule_is_unknown(
    tmp_path: Path, source: str, message: str
) -> None:
    peer = toy(tmp_path, source)
    with pytest.raises(RuntimeError, match=message):
        peers.run(peer, load(), 0.0, tmp_path)


def test_the_command_line_takes_the_folder_for_this_figure_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", "speed", "--peer-path", str(tmp_path)]) == 2
    assert "--peer-path belongs to clients, not to speed" in capsys.readouterr().err
