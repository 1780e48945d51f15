"""Does a load tester send when it says? Ours and others, against the fake server.

Each client is asked for Poisson arrivals at the same rate, with its event loop otherwise idle and
with half of its time taken away. The fake server notes when each request came; a client's own
schedule (its drawn gaps, or our list of times) says when it should have come.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.fakeserver import FakeServer
from sgl_entropy_bench.figures import peers
from sgl_entropy_bench.figures.peers import PeerLoad, Sent
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.judge.metrics import quantile
from sgl_entropy_bench.load.run.pool import drive
from sgl_entropy_bench.load.run.worker import Planned, WorkerTask
from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw, schedule

RATES = (40.0, 200.0)
BUSY = (0.0, 0.5)
TOKENS = 8
SEED = 0
OURS = "sgl-entropy bench"
HABIT = "draws all times first and sleeps to them"


@dataclass(frozen=True)
class ClientFacts:
    """A load tester's version (ours: empty), and how it keeps time."""

    version: str
    habit: str


@dataclass(frozen=True)
class ClientRow:
    """How well a client kept its times; both clocks are set to the first request.

    Attributes:
        rate, busy: what it was asked for, requests a second, and the busy share of its event loop.
        lag_p99_s, lag_max_s: how much later requests came than the client had drawn.
        cpu_ms_a_request: processor time of the client.
    """

    requests: int
    scheduled_rate: float
    achieved_rate: float
    lag_p99_s: float
    lag_max_s: float
    cpu_ms_a_request: float
    client: str
    rate: float
    busy: float


@dataclass(frozen=True)
class ClientsFigure:
    """The whole figure; ``missing``: load testers that are not installed."""

    seconds: float
    clients: Mapping[str, ClientFacts]
    missing: Sequence[str]
    rows: Sequence[ClientRow]


def measure(target: Path, quick: bool, peer_path: Path | None = None) -> tuple[ClientsFigure, str]:
    """Returns the figure and its page.

    Args:
        target: a folder with a tokenizer, for clients that need one.
        peer_path: a folder where other load testers are installed; those that are neither there
            nor in this environment are left out, and a message says how to get them.

    Raises:
        ValueError: no other load tester is in ``peer_path``.
    """
    seconds = 4.0 if quick else 20.0
    others = peers.installed(peer_path)
    missing = [peer for peer in peers.PEERS if peer not in others]
    if missing:
        names = ", ".join(peer.name for peer in missing)
        print(
            f"not installed, the figure goes without: {names}\n\n{peers.how_to_install(missing)}\n",
            file=sys.stderr,
        )
    cases = list(itertools.product(RATES, BUSY, [None, *others]))
    clients = {OURS: ClientFacts("", HABIT)}
    progress = Progress(len(cases) * (seconds + 10))
    rows = []
    with FakeServer("--ttft", "0.01", "--cycle", "0.005", "--slots", "4096") as server:
        control = Client.from_url(server.url)
        for number, (rate, busy, peer) in enumerate(cases):
            name = peer.name if peer else OURS
            progress.step(f"{name} at {rate:g}/s, busy {busy:.0%}", number / len(cases))
            load = PeerLoad(server.url, target, rate, round(rate * seconds), TOKENS, SEED)
            control.forget_prefixes()
            sent = peers.run(peer, load, busy, peer_path) if peer else _ours(load, busy)
            if peer:
                clients[name] = ClientFacts(sent.version, peer.habit)
            arrived = control.get("/fake_arrivals")[-load.count :]
            rows.append(row_of(name, rate, busy, sent, arrived))
    progress.close()
    figure = ClientsFigure(seconds, clients, [peer.name for peer in missing], rows)
    return figure, page(figure)


def _ours(load: PeerLoad, busy: float) -> Sent:
    times = schedule(ArrivalLaw("poisson"), load.rate, load.count, load.seed)
    planned = tuple(
        Planned(i, time, "measured", str(i), "none", f"prompt {i}") for i, time in enumerate(times)
    )
    with tempfile.TemporaryDirectory() as folder:
        task = WorkerTask(
            load.url,
            "generate",
            "fake",
            Output(load.tokens, ignore_eos=True),
            planned,
            Path(folder) / "records.jsonl",
            busy_share=busy,
        )
        outcome = drive([task], load.count, lambda tallies, elapsed: None)
    return Sent(times, outcome.tallies[0].cpu_s)


def row_of(
    client: str, rate: float, busy: float, sent: Sent, arrived: Sequence[float]
) -> ClientRow:
    """When requests arrived, against when the client meant to send them.

    Raises:
        RuntimeError: not as many arrived as were planned.
    """
    planned, count = sent.times, len(sent.times)
    if len(arrived) != count:
        raise RuntimeError(f"{len(arrived)} requests came, {count} were planned")
    late = sorted(
        (there - arrived[0]) - (time - planned[0])
        for time, there in zip(planned, sorted(arrived), strict=True)
    )
    return ClientRow(
        requests=count,
        scheduled_rate=(count - 1) / (planned[-1] - planned[0]),
        achieved_rate=(count - 1) / (max(arrived) - arrived[0]),
        lag_p99_s=quantile(late, 0.99),
        lag_max_s=late[-1],
        cpu_ms_a_request=1e3 * sent.cpu_s / count,
        client=client,
        rate=rate,
        busy=busy,
    )


def page(figure: ClientsFigure) -> str:
    """The figure as Markdown."""
    rows = [
        [
            row.client,
            f"{row.rate:g}",
            "half busy" if row.busy else "idle",
            f"{row.scheduled_rate:.2f}",
            f"{row.achieved_rate:.2f} ({row.achieved_rate / row.scheduled_rate - 1:+.1%})",
            f"{1e3 * row.lag_p99_s:.1f}",
            f"{1e3 * row.lag_max_s:.1f}",
            f"{row.cpu_ms_a_request:.2f}",
        ]
        for row in figure.rows
    ]
    header = (
        *("client", "asked/s", "event loop", "scheduled/s", "achieved/s"),
        *("lag p99, ms", "lag max, ms", "CPU, ms a request"),
    )
    habits = [
        f"- `{name}`{client.version and ' ' + client.version} {client.habit}."
        for name, client in figure.clients.items()
    ]
    missing = [f"- `{name}` was not installed." for name in figure.missing]
    return "\n\n".join(
        [
            "# Load testers: do they send when they say?",
            f"One process each against the fake server, {figure.seconds:g} s of Poisson arrivals, "
            f"{TOKENS} streamed tokens a request. Scheduled: the client's own drawn times. Lag: by "
            "how much a request came to the server later than that, from the first request on. "
            "Half busy: a task takes half of the event loop's time, 2 ms at a time. CPU: the "
            "client's processor time from its first request to its end, with that task's.",
            "\n".join([*habits, *missing]),
            markdown_table(header, rows),
        ]
    )
