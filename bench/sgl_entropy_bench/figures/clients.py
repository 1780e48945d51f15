"""Does a load tester send when it says? Ours beside others, against the fake server.

Each client is asked for Poisson arrivals at the same rate, with its event loop otherwise idle and
with half of its time taken away. The fake server notes when each request came; a client's own
schedule (its drawn gaps, or our list of times) says when it should have come.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_entropy_bench.client import Client
from sgl_entropy_bench.fakeserver import FakeServer
from sgl_entropy_bench.load.arrivals import ArrivalLaw, schedule
from sgl_entropy_bench.load.metrics import quantile
from sgl_entropy_bench.load.pool import drive
from sgl_entropy_bench.load.routes import Output
from sgl_entropy_bench.load.worker import Planned, Task
from sgl_entropy_bench.progress import Progress
from sgl_entropy_bench.tables import markdown_table

RATES = (40.0, 200.0)
BUSY = (0.0, 0.5)
TOKENS = 8
SEED = 0


def measure(target: Path, quick: bool) -> tuple[dict[str, Any], str]:
    """Returns the data (a row a client, rate and busy share) and the page.

    Args:
        target: a folder with a tokenizer, for clients that need one.
    """
    seconds = 4.0 if quick else 20.0
    clients = ["sgl-entropy bench", "sglang.bench_serving"]
    if importlib.util.find_spec("sglang") is None:
        clients.pop()
    cases = list(itertools.product(RATES, BUSY, clients))
    progress = Progress(len(cases) * (seconds + 10))
    rows = []
    with FakeServer("--ttft", "0.01", "--cycle", "0.005", "--slots", "4096") as server:
        for number, (rate, busy, client) in enumerate(cases):
            progress.step(f"{client} at {rate:g}/s, busy {busy:.0%}", number / len(cases))
            count = round(rate * seconds)
            control = Client.from_url(server.url)
            control.post("/flush_cache")
            if client == clients[0]:
                planned, cpu = _ours(server.url, rate, count, busy)
            else:
                planned, cpu = _bench_serving(server.url, target, rate, count, busy)
            arrived = control.get("/fake_arrivals")[-count:]
            rows.append(
                {"client": client, "rate": rate, "busy": busy, **_judged(planned, arrived, cpu)}
            )
    progress.close()
    data = {"seconds": seconds, "rows": rows}
    return data, page(data)


def _ours(url: str, rate: float, count: int, busy: float) -> tuple[list[float], float]:
    times = schedule(ArrivalLaw("poisson"), rate, count, SEED)
    planned = tuple(
        Planned(i, time, "measured", str(i), "none", f"prompt {i}") for i, time in enumerate(times)
    )
    with tempfile.TemporaryDirectory() as folder:
        task = Task(
            url,
            "generate",
            "fake",
            Output(TOKENS, ignore_eos=True),
            planned,
            Path(folder) / "records.jsonl",
            busy_share=busy,
        )
        outcome = drive([task], count, lambda tallies, elapsed: None)
    return times, outcome.tallies[0].cpu_s


def _bench_serving(
    url: str, target: Path, rate: float, count: int, busy: float
) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        command = [
            *(sys.executable, "-m", "sgl_entropy_bench.figures.peer", "--notes", str(notes)),
            *("--busy", str(busy), "sglang.bench_serving", "--backend", "sglang"),
            *("--base-url", url, "--model", str(target), "--tokenizer", str(target)),
            *("--dataset-name", "random-ids", "--random-input-len", "16"),
            *("--random-output-len", str(TOKENS), "--random-range-ratio", "1"),
            *("--num-prompts", str(count), "--request-rate", str(rate), "--seed", str(SEED)),
            *("--output-file", str(Path(folder) / "out.jsonl"), "--disable-tqdm"),
            *("--warmup-requests", "1"),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not notes.is_file():
            raise RuntimeError(f"sglang.bench_serving failed:\n{done.stderr[-2000:]}")
        held = json.loads(notes.read_text())
    gaps = held["gaps"][-count:]
    # It sends one, then sleeps for a gap: the last gap follows the last request.
    return [0.0, *itertools.accumulate(gaps[: count - 1])], sum(held["cpu_s"])


def _judged(planned: Sequence[float], arrived: Sequence[float], cpu: float) -> dict[str, Any]:
    """Rates and lag of the requests that came, both clocks set to the first one."""
    count = len(planned)
    if len(arrived) != count:
        raise RuntimeError(f"{len(arrived)} requests came, {count} were planned")
    late = sorted(
        (there - arrived[0]) - (time - planned[0])
        for time, there in zip(planned, sorted(arrived), strict=True)
    )
    return {
        "requests": count,
        "scheduled_rate": (count - 1) / (planned[-1] - planned[0]),
        "achieved_rate": (count - 1) / (max(arrived) - arrived[0]),
        "lag_p99_s": quantile(late, 0.99),
        "lag_max_s": late[-1],
        "cpu_ms_a_request": 1e3 * cpu / count,
    }


def page(data: dict[str, Any]) -> str:
    """The figure as Markdown."""
    rows = [
        [
            row["client"],
            f"{row['rate']:g}",
            "half busy" if row["busy"] else "idle",
            f"{row['scheduled_rate']:.2f}",
            f"{row['achieved_rate']:.2f} ({row['achieved_rate'] / row['scheduled_rate'] - 1:+.1%})",
            f"{1e3 * row['lag_p99_s']:.1f}",
            f"{1e3 * row['lag_max_s']:.1f}",
            f"{row['cpu_ms_a_request']:.2f}",
        ]
        for row in data["rows"]
    ]
    header = (
        *("client", "asked/s", "event loop", "scheduled/s", "achieved/s"),
        *("lag p99, ms", "lag max, ms", "CPU, ms a request"),
    )
    return "\n\n".join(
        [
            "# Load testers: do they send when they say?",
            f"One process each against the fake server, {data['seconds']:g} s of Poisson arrivals, "
            f"{TOKENS} streamed tokens a request. Scheduled: the client's own drawn times. Lag: by "
            "how much a request came to the server later than that, from the first request on. "
            "Half busy: a task takes half of the event loop's time, 2 ms at a time; its processor "
            "time is in the last column.",
            markdown_table(header, rows),
        ]
    )
