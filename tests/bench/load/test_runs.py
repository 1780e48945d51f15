"""The whole command against the fake server: real HTTP and faults; processes where they matter."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.http.record import CUT, read_records

from sgl_entropy.cli import main
from tests.scripted_server import ScriptedServer, every

# A run starts no process of its own; the commands that tests start do.
pytestmark = pytest.mark.usefixtures("in_process")
QUICK = ("--ttft", "0.01", "--cycle", "exponential:0.004", "--output-tokens", "gamma:20:0.4")


def bench(*words: object, out: Path, code: int | None = 0) -> dict[str, Any]:
    """Run ``sgl-entropy bench``; lag on a busy machine may make a run invalid, which is no fault
    of what is tested here: 3 passes for 0."""
    found = main(["bench", *map(str, words), "--out", str(out)])
    if code is not None:
        assert found == code or (code, found) == (0, 3)
    path = out / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return result


def heeding_interrupts() -> None:
    """A shell's background job starts with SIGINT ignored, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedServer]:
    """Without speculation."""
    with ScriptedServer(*QUICK, "--depth", "0") as server:
        yield server


@pytest.fixture(scope="module")
def fast() -> Iterator[ScriptedServer]:
    """Two ranks that speculate."""
    with ScriptedServer(*QUICK, "--acceptance", "0.7", "--ranks", "2") as server:
        yield server


def test_latency_of_two_arms(plain: ScriptedServer, fast: ScriptedServer, tmp_path: Path) -> None:
    report = bench(
        *("latency", "--arms", f"none={plain.url},edsd={fast.url}"),
        *("--qps", "60", "--dp-size", "1", "--num-requests", 80, "--seed", 4, "--processes", 2),
        *("--slo", "e2e=5"),
        out=tmp_path,
    )
    none, edsd = report["results"]
    assert [none["arm"], edsd["arm"]] == ["none", "edsd"]
    assert none["asked_qps"] == edsd["asked_qps"] == 60
    # The same schedule and prompts on both arms, which is what pairs them.
    records = [read_records(tmp_path / f"{arm}-qps-60.jsonl") for arm in ("none", "edsd")]
    for a, b in zip(*([r for r in held if r.phase != "tail"] for held in records), strict=True):
        assert (a.index, a.prompt, a.scheduled) == (b.index, b.prompt, b.scheduled)
    assert {record.process for record in records[0]} == {0, 1}
    assert {record.rank for record in records[1] if record.phase != "tail"} == {0, 1}
    measured = [r for r in records[1] if r.phase == "measured"]
    assert len(measured) == none["requests"] == 80
    assert edsd["tau"] == pytest.approx(
        sum(r.emitted or 0 for r in measured) / sum(r.cycles or 0 for r in measured)
    )
    assert 2.3 < edsd["tau"] < 3.2  # 1 + .7 + .49 + .343 + .2401 = 2.77
    assert none["tau"] is None
    assert set(edsd["tau_by_rank"]) == {"0", "1"}
    against = edsd["against"]
    assert against["equal_outputs"] == 1.0
    assert against["e2e_ratio"]["high"] < 1
    assert none["goodput"]["share"] == 1.0
    assert none["e2e"]["p50"] <= none["e2e"]["p99"] <= none["e2e"]["max"]
    assert none["achieved_qps"] == pytest.approx(none["scheduled_qps"], rel=0.1)
    assert none["workload"]["prompts"] == 400
    assert report["provenance"]["commit"]


def test_rates_are_per_rank_as_the_server_says(fast: ScriptedServer, tmp_path: Path) -> None:
    report = bench(
        *("latency", "--arms", f"a={fast.url}", "--qps", 40, "--num-requests", 20), out=tmp_path
    )
    assert report["results"][0]["asked_qps"] == 80


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_openai_routes(api: str, fast: ScriptedServer, tmp_path: Path) -> None:
    report = bench(
        *("latency", "--arms", f"a={fast.url}", "--qps", 40, "--num-requests", 20, "--api", api),
        out=tmp_path,
    )
    (result,) = report["results"]
    assert (result["errors"], result["tau"]) == (0, None)
    # These routes do not count cycles for a request; the server's counters do.
    assert 2 < result["tau_counted_by_server"] < 3.4
    assert result["ttft"]["mean"] < result["e2e"]["mean"]


def test_without_streaming(plain: ScriptedServer, tmp_path: Path) -> None:
    report = bench(
        *("latency", "--arms", f"a={plain.url}", "--qps", 60, "--num-requests", 20, "--no-stream"),
        out=tmp_path,
    )
    assert report["results"][0]["ttft"] is None
    assert report["results"][0]["errors"] == 0


def test_throughput_and_its_speed_up(
    plain: ScriptedServer, fast: ScriptedServer, tmp_path: Path
) -> None:
    report = bench(
        *("throughput", "--arms", f"none={plain.url},edsd={fast.url}"),
        *("--concurrency", "4,8", "--num-requests", 40),
        out=tmp_path,
    )
    assert [(r["arm"], r["concurrency"]) for r in report["results"]] == [
        *(("none", 4), ("edsd", 4), ("none", 8), ("edsd", 8))
    ]
    for result in report["results"]:
        records = read_records(tmp_path / f"{result['arm']}-{result['load']}.jsonl")
        at_once = max(
            sum(a.sent <= b.sent < (a.last or 1e9) for a in records)  # type: ignore[operator]
            for b in records
        )
        assert at_once == result["concurrency"]
        assert all(record.scheduled >= 0 for record in records)
    ratio = report["results"][1]["against"]["throughput_ratio"]
    assert ratio["pairs"] == 40
    assert ratio["value"] > 1  # 2.8 on a quiet machine


def test_capacity_is_the_rate_that_saturates(tmp_path: Path) -> None:
    """One place, 30 ms a request: 33 a second, however many wait."""
    laws = ("--slots", "1", "--ttft", "0.03", "--cycle", "0.001", "--output-tokens", "1")
    with ScriptedServer(*laws, "--depth", "0") as server:
        report = bench(
            *("capacity", "--arms", f"none={server.url}", "--concurrency", 6),
            *("--num-requests", 60),
            out=tmp_path,
        )
        found = report["results"][0]["capacity"]
        assert 24 < found["value"] < 34
        assert found["low"] < found["value"] < found["high"]


def test_speed_by_benchmark(plain: ScriptedServer, fast: ScriptedServer, tmp_path: Path) -> None:
    report = bench(
        *("speed", "--arms", f"none={plain.url},edsd={fast.url}", "--num-requests", 60),
        *("--max-tokens", 16),
        out=tmp_path,
    )
    none, edsd = report["results"]
    assert set(edsd["speed"]) == {"code", "conversation", "instruction", "maths", "summary"}
    assert none["speed_all"]["speedup"]["value"] == pytest.approx(1.0)
    assert edsd["speed_all"]["speedup"]["low"] > 1.2


def test_outputs_that_differ_are_seen(plain: ScriptedServer, tmp_path: Path) -> None:
    with ScriptedServer(*QUICK, "--depth", "0", "--wrong-every", "4") as wrong:
        report = bench(
            *("latency", "--arms", f"none={plain.url},other={wrong.url}", "--qps", 60),
            *("--num-requests", 40),
            out=tmp_path,
        )
    assert report["results"][1]["against"]["equal_outputs"] == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("status", "status 503"),
        ("refuse", "disconnected"),
        ("stall", "no byte for 1 s"),
        ("drop", "stream broke off|payload|ransfer"),
        ("broken-sse", "not JSON|ended before"),
        ("no-done", "stream broke off"),
        ("no-usage", "counts no tokens"),
        ("abort", "aborted by the server"),
    ],
)
def test_faults_are_errors_with_a_reason(fault: str, error: str, tmp_path: Path) -> None:
    with ScriptedServer(*QUICK, "--fault", fault, "--fault-every", "4") as server:
        report = bench(
            *("latency", "--arms", f"a={server.url}", "--qps", 100, "--num-requests", 24),
            *("--stall", 1, "--warmup", 0),
            out=tmp_path,
            code=3,
        )
    (result,) = report["results"]
    assert not result["valid"]
    assert 4 <= result["errors"] <= 8
    assert result["requests"] == 24
    (kind,) = result["error_kinds"]
    assert re.search(error, kind, re.IGNORECASE), kind
    assert result["e2e"]["p99"] is None
    assert result["e2e"]["failed"] == result["errors"]


def test_a_server_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        bench(
            *("latency", "--arms", f"a=http://127.0.0.1:{port}", "--qps", 1), out=tmp_path, code=1
        )
    assert "no server answers" in capsys.readouterr().err


def test_a_run_goes_on_where_it_was(plain: ScriptedServer, tmp_path: Path) -> None:
    words = ("latency", "--arms", f"a={plain.url}", "--num-requests", 20)
    first = bench(*words, "--qps", "60", out=tmp_path)
    again = bench(*words, "--qps", "60,90", "--resume", out=tmp_path)
    assert again["results"][0] == first["results"][0]
    assert again["results"][1]["asked_qps"] == 90
    other = bench(*words, "--qps", "60", "--seed", 1, "--resume", out=tmp_path)
    assert other["results"][0]["started"] != first["results"][0]["started"]


def test_two_machines_share_a_load_and_are_merged(plain: ScriptedServer, tmp_path: Path) -> None:
    """Each with its own prompts and arrivals of half the rate, without a coordinator."""
    for i in range(2):
        begin = time.time() + 0.6
        bench(
            *("latency", "--arms", f"a={plain.url}", "--qps", "60", "--num-requests", "60"),
            *("--stream", f"{i}/2", "--start-at", begin, "--warmup", 0),
            out=tmp_path / str(i),
        )
        # One after the other on this machine; on two they would have begun together.
        file = tmp_path / str(i) / "result.json"
        report = json.loads(file.read_text())
        assert 0 <= report["results"][0]["started"] - begin < 0.3
        report["results"][0]["started"] = 1000.0
        file.write_text(json.dumps(report))
    both = [read_records(tmp_path / f"{i}" / "a-qps-60.jsonl") for i in range(2)]
    assert not {r.prompt for r in both[0]} & {r.prompt for r in both[1]}
    out = tmp_path / "all"
    assert main(
        ["bench", "merge", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(out)]
    ) in (0, 3)
    (result,) = json.loads((out / "result.json").read_text())["results"]
    assert (result["asked_qps"], result["requests"], result["load"]) == (60, 120, "qps-60")
    assert not [r for r in result["reasons"] if not re.search("lag|off|were sent|core", r)]
    assert result["achieved_qps"] == pytest.approx(60, rel=0.3)


FINE = (
    b'data: {"text": "a", "meta_info": {"finish_reason": {"type": "stop"}, "prompt_tokens": 2,'
    b' "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (b'data: {"error": {"message": ""}}\n\n', "an error without a message"),
        (b'data: {"error": {"message": "a\\u2028b \\ud800"}}\n\n', "a\u2028b"),
        (FINE.replace(b'{"type": "stop"}', b'"stop"'), ""),
        (FINE.replace(b'"text": "a"', b'"text": "\\ud800"'), ""),
        (FINE.replace(b"\n", b"\r\n"), ""),
        (FINE.replace(b'"completion_tokens": 1', b'"completion_tokens": -1e999'), "counts no"),
        (FINE.replace(b"data: {", b"data: 3{"), "not JSON"),
        (b"data: " + b"[" * 100_000 + b"\n\ndata: [DONE]\n\n", "not JSON|RecursionError"),
    ],
)
def test_an_odd_reply_is_one_requests_error_and_never_hangs(
    odd: bytes, error: str, tmp_path: Path
) -> None:
    """Every fourth reply; the run ends, and counts those."""
    with ScriptedServer(script=every(4, odd, FINE)) as server:
        report = bench(
            *("latency", "--arms", f"a={server.url}", "--api", "generate", "--qps", 200),
            *("--num-requests", 20, "--ramp", 0, "--warmup", 0, "--stall", 2),
            out=tmp_path,
            code=3 if error else 0,
        )
    (result,) = report["results"]
    # The twentieth and the first of the tail may come to the server in either order.
    assert result["requests"] == 20
    assert result["errors"] in ((4, 5) if error else (0,))
    for kind in result["error_kinds"]:
        assert re.search(error, kind)


def test_the_load_goes_on_until_the_last_measured_request_has_ended(tmp_path: Path) -> None:
    """Requests far longer than the whole schedule: arrivals must not stop behind it."""
    laws = ("--ttft", "0.005", "--cycle", "0.04", "--slots", "4096")
    laws += ("--output-tokens", "gamma:25:0.3")  # so that they do not all end at once
    with ScriptedServer(*laws, "--depth", "0") as server:
        bench(
            *("latency", "--arms", f"a={server.url}", "--qps", 100, "--num-requests", 20),
            *("--ramp", 0, "--warmup", 0),
            out=tmp_path / "open",
        )
        records = read_records(tmp_path / "open" / "a-qps-100.jsonl")
        end = max(r.last or 0 for r in records if r.phase == "measured")
        assert end > 0.95
        assert max(r.scheduled for r in records) > end - 0.15
        bench(
            *("throughput", "--arms", f"a={server.url}", "--concurrency", 8),
            *("--num-requests", 8, "--warmup", 0),
            out=tmp_path / "closed",
        )
    records = read_records(tmp_path / "closed" / "a-batch-8.jsonl")
    cut = [r for r in records if r.error == CUT]
    # What they delivered until they were cut off counts in the throughput.
    assert len(cut) == 8
    assert any(r.chunks for r in cut)


@pytest.mark.slow
def test_capacity_with_answers_of_any_length(tmp_path: Path) -> None:
    """By Little's law: places / mean time in service.

    One of three tries, as servers that start beside it may take every core for a while.
    """
    laws = ("--ttft", "0.02", "--cycle", "0.02", "--output-tokens", "gamma:30:0.8")
    shares = []
    with ScriptedServer(*laws, "--depth", "0", "--slots", "16") as server:
        while not shares or (abs(shares[-1] - 1) > 0.2 and len(shares) < 3):
            folder = tmp_path / str(len(shares))
            report = bench(
                *("capacity", "--arms", f"a={server.url}", "--concurrency", 32),
                *("--num-requests", 160),
                out=folder,
            )
            served = [
                r.last - r.first
                for r in read_records(folder / "a-capacity.jsonl")
                if r.phase == "measured" and r.first is not None and r.last is not None
            ]
            mean = sum(served) / len(served) + 0.02
            shares.append(report["results"][0]["capacity"]["value"] / (16 / mean))
    assert shares[-1] == pytest.approx(1, abs=0.2), shares


def test_resuming_takes_nothing_from_another_arm_and_loses_nothing(
    plain: ScriptedServer, tmp_path: Path
) -> None:
    with ScriptedServer(*QUICK, "--depth", "0") as twin:  # the same in all that a server says
        words = ("latency", "--arms", f"none={plain.url},twin={twin.url}", "--num-requests", 12)
        first = bench(*words, "--qps", "60,90", out=tmp_path)
        again = bench(*words, "--qps", "60,90", "--resume", out=tmp_path)
        assert again["results"] == first["results"]
        assert [r["arm"] for r in again["results"]] == ["none", "twin"] * 2
        only = bench(*words, "--qps", "120", "--resume", out=tmp_path)
    loads = [(r["arm"], r["load"]) for r in only["results"]]
    assert loads[:2] == [("none", "qps-120"), ("twin", "qps-120")]
    assert set(loads[2:]) == {(a, q) for a in ("none", "twin") for q in ("qps-60", "qps-90")}


def test_results_are_not_overwritten(
    plain: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("latency", "--arms", f"a={plain.url}", "--qps", "20", "--num-requests", "4")
    first = bench(*words, out=tmp_path)
    assert bench(*words, out=tmp_path, code=2) == first
    assert "holds results already" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{")
    assert main(["bench", *words, "--resume", "--out", str(tmp_path)]) == 2
    assert "cannot be resumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("when", "number"),
    [("warm-up", signal.SIGINT), ("waiting", signal.SIGTERM), ("measuring", signal.SIGINT)],
)
def test_a_signal_to_all_processes_ends_a_run_at_any_moment(
    when: str, number: int, tmp_path: Path
) -> None:
    """As a terminal's Ctrl-C and a batch system's cancellation send it."""
    late = ("--start-at", str(time.time() + 3600)) if when == "waiting" else ()
    warm = ("--warmup", "8" if when == "warm-up" else "0")
    with ScriptedServer(
        "--ttft", "3" if when == "warm-up" else "0.01", "--cycle", "0.01"
    ) as server:
        words = ("latency", "--arms", f"a={server.url}", "--qps", "10", "--num-requests", "900")
        command = [sys.executable, "-m", "sgl_entropy", "bench", *words, *late, *warm]
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=heeding_interrupts,
        )
        file = "warmup.jsonl" if when == "warm-up" else "a-qps-10.jsonl"
        deadline = time.monotonic() + 30
        while not (tmp_path / file).is_file():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(process.pid, number)
        assert process.wait(timeout=15) == 128 + number
    assert json.loads((tmp_path / "result.json").read_text())["partial"]


def test_a_signal_to_the_command_alone_keeps_what_was_measured(
    plain: ScriptedServer, tmp_path: Path
) -> None:
    words = ("latency", "--arms", f"a={plain.url}", "--qps", "10", "--num-requests", "1000")
    command = [sys.executable, "-m", "sgl_entropy", "bench", *words, "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_interrupts,
    )
    path = tmp_path / "a-qps-10.jsonl"
    deadline = time.monotonic() + 30
    while not path.is_file() or path.read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    table, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["partial"]
    assert not report["valid"]
    assert len(read_records(path)) >= 5
    assert "partial" in table


def test_a_full_disk_is_told_and_what_was_written_is_kept(
    plain: ScriptedServer, tmp_path: Path
) -> None:
    """A file size limit stands for the full disk: writing fails half way in the same manner."""
    words = ("latency", "--arms", f"a={plain.url}", "--qps", "40", "--num-requests", "400")
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from sgl_entropy.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "bench", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "a-qps-40.jsonl" in done.stderr
    assert "File too large" in done.stderr
    assert len(read_records(tmp_path / "a-qps-40.jsonl")) > 10


def test_arms_that_are_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each server is started, measured and stopped in turn."""
    arms = {
        "command": "python -m sgl_entropy_bench.fakeserver --port {port} --cycle 0.002",
        "arms": [{"name": "none", "flags": ["--depth", "0"]}, {"name": "edsd", "flags": []}],
    }
    (tmp_path / "arms.json").write_text(json.dumps(arms))
    report = bench(
        *("latency", "--launch", tmp_path / "arms.json", "--load", "0.3"),
        *("--num-requests", 40, "--max-tokens", 8, "--capacity-concurrency", 4),
        out=tmp_path / "out",
    )
    assert [r["arm"] for r in report["results"]] == ["none", "edsd"]
    capacity = report["capacity"]["qps"]["value"]
    assert report["results"][0]["asked_qps"] == pytest.approx(0.3 * capacity)
    assert "--depth 0" in report["results"][0]["server"]["command"]


def test_a_campaign_that_breaks_off_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second arm's server does not come up: what the first gave is kept, and is partial."""
    arms = {
        "command": "python -m sgl_entropy_bench.fakeserver --port {port} --cycle 0.002",
        "arms": [{"name": "none"}, {"name": "edsd", "flags": ["--nonsense"]}],
    }
    (tmp_path / "arms.json").write_text(json.dumps(arms))
    report = bench(
        *("throughput", "--launch", tmp_path / "arms.json", "--concurrency", 2),
        *("--num-requests", 8, "--max-tokens", 8),
        out=tmp_path / "out",
        code=1,
    )
    assert [r["arm"] for r in report["results"]] == ["none"]
    assert report["partial"]
    told = capsys.readouterr().err
    assert "the edsd server ended while starting" in told
    assert "finished measurements are in" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("latency", "--arms", "a=http://h:1"), "give --qps or --load"),
        (("latency", "--arms", "a=http://h:1", "--qps", "0"), "--qps 0"),
        (("latency", "--arms", "a=http://h:1", "--qps", "1", "--stall", "0"), "--stall must be"),
        (("speed", "--arms", "a=http://h:1", "--timeout", "nan"), "--timeout must be"),
        (("speed", "--arms", "a=http://h:1", "--temperature", "-1"), "--temperature must"),
        (("latency", "--arms", "a=http://h:1", "--qps", "2,2"), "a number twice"),
        (("latency", "--arms", "a=http://h:1", "--qps", "x"), "--qps x"),
        (("latency", "--arms", "http://h:1", "--qps", "1"), "NAME=URL"),
        (("latency", "--arms", "a=http://h:1,a=http://h:2", "--qps", "1"), "a name of its own"),
        (("latency", "--arms", "../a=http://h:1", "--qps", "1"), "an arm's name"),
        (("latency", "--arms", "a=ftp://h", "--qps", "1"), "http://HOST:PORT"),
        (
            ("latency", "--arms", "a=http://h:1", "--qps", "1", "--num-requests", "1"),
            "--num-requests",
        ),
        (
            ("latency", "--arms", "a=http://h:1", "--qps", "1", "--prompts", "nowhere.jsonl"),
            "--prompts nowhere.jsonl: no such file",
        ),
        (
            ("latency", "--arms", "a=http://h:1", "--qps", "1", "--arrivals", "often"),
            "--arrivals often",
        ),
        (("latency", "--arms", "a=http://h:1", "--qps", "1", "--stream", "2/2"), "--stream 2/2"),
        (
            ("latency", "--arms", "a=http://h:1", "--load", "1", "--stream", "0/2"),
            "--stream needs",
        ),
        (
            ("latency", "--arms", "a=http://h:1", "--qps", "1", "--start-at", "noon"),
            "--start-at noon",
        ),
        (
            ("latency", "--arms", "a=http://h:1,b=http://h:2", "--qps", "1", "--start-at", "9"),
            "one arm and one load",
        ),
        (("throughput", "--arms", "a=http://h:1", "--concurrency", "1.5"), "--concurrency 1.5"),
        (
            ("latency", "--launch", "nowhere.toml", "--qps", "1"),
            "--launch nowhere.toml: no such file",
        ),
        (("latency", "--arms", "arms.toml", "--qps", "1"), "an arms file goes to --launch"),
        (
            ("latency", "--arms", "a=http://h:1", "--arrivals", "trace:nowhere"),
            "--arrivals nowhere: no such file",
        ),
    ],
)
def test_wrong_arguments(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(*words, out=tmp_path, code=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["report", "merge", "judge", "speed"])
def test_help_shows_the_examples_of_its_own_verb(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", verb, "--help"])
    told = capsys.readouterr().out
    examples = re.findall(r"^  sgl-entropy bench (\w+)", told, flags=re.MULTILINE)
    assert set(examples) == {verb}
    assert ("arms file" in told) == (verb == "speed")


def test_the_arms_file_in_the_readme_is_one(tmp_path: Path) -> None:
    from sgl_entropy_bench.load.run.arms import read_arms

    text = (Path(__file__).parents[3] / "bench" / "README.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"^(    command = .*?)^\| key", text, flags=re.MULTILINE | re.DOTALL)
    path = tmp_path / "arms.toml"
    path.write_text(re.sub("^    ", "", written, flags=re.MULTILINE))
    none, edsd = read_arms(path)
    assert (none.name, edsd.ready_timeout_s) == ("none", 900.0)
    assert edsd.command[-1] == f"{tmp_path}/edsd"
    assert edsd.environment == {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"arms": []}, "command must be"),
        ({"command": "serve", "arms": [{"name": "a"}]}, "must hold {port}"),
        ({"command": "serve {port}", "arms": []}, r"\[\[arms\]\]"),
        ({"command": "serve {port}", "colour": 1, "arms": []}, "unknown keys colour"),
        ({"command": "serve {port}", "arms": [{"name": "a", "port": 1}]}, "unknown keys port"),
        ({"command": "serve {port}", "arms": [{"flags": []}]}, "needs a name"),
        ({"command": "serve {port}", "arms": [{"name": "a"}, {"name": "a"}]}, "name of its own"),
        ({"command": "serve {port}", "arms": [{"name": "a", "flags": [1]}]}, "list of words"),
        ({"command": "x {port}", "environment": [], "arms": [{"name": "a"}]}, "environment"),
        ({"command": "x {port}", "ready_timeout_s": 0, "arms": [{"name": "a"}]}, "ready_timeout"),
    ],
)
def test_wrong_arms_files(arms: dict[str, Any], message: str, tmp_path: Path) -> None:
    from sgl_entropy_bench.load.run.arms import read_arms

    path = tmp_path / "arms.json"
    path.write_text(json.dumps(arms))
    with pytest.raises(ValueError, match=message):
        read_arms(path)
