"""Real SGLang servers on this machine's CPU, started once and shared by all engine tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server, free_port

from tests.engine import pair
from tests.engine.client import EngineClient

# Without speculation but also without overlap: upstream's overlap schedule applies penalties
# one token late, and speculation switches it off.
PLAIN = ("--disable-overlap-schedule",)
# Little memory and small prompt chunks: retraction and chunked prefill on short requests.
SMALL = ("--chunked-prefill-size", "32", "--schedule-conservativeness", "0.01")
SMALL_POOL = 400
# Low thresholds: the tiny target and its drafters are seldom unsure of the same tokens.
EASD = (
    *("--speculative-verify-mode", "easd", "--easd-top-n", "5", "--easd-overlap", "0.2"),
    *("--easd-target-entropy", "1.0", "--easd-draft-entropy", "1.0"),
)
# Started together, two at a time, as most tests compare all of them.
COMPARED = ("none", "edsd_chain", "edsd_tree", "eagle3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


class Fleet:
    """The servers of a session by name, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.target = pair.write_target(folder / "target")
        edsd = pair.write_edsd(folder / "edsd", self.target)
        eagle3 = pair.write_eagle3(folder / "eagle3", self.target)
        variant = pair.write_edsd_variant(folder / "variant", self.target)
        small = pair.write_edsd_small(folder / "edsd_half", self.target)
        # Thresholds within what the tiny target meets at every other cycle.
        two = (
            *("--speculative-second-draft-model-path", str(small)),
            *("--speculative-drafter-switch", "1.2,1.4"),
        )
        chain, tree = (
            ServeArm("edsd_chain", "EDSD", edsd),
            ServeArm("edsd_tree", "EDSD", edsd, 4, 3, 12),
        )
        self.arms: dict[str, tuple[ServeArm, tuple[str, ...], int]] = {
            "none": (ServeArm("none"), PLAIN, 8192),
            "edsd_chain": (chain, (), 8192),
            "edsd_tree": (tree, (), 8192),
            "eagle3": (ServeArm("eagle3", "EAGLE3", eagle3), (), 8192),
            "variant": (ServeArm("variant", "EDSD", variant), (), 8192),
            "small_chain": (chain, SMALL, SMALL_POOL),
            "small_tree": (tree, SMALL, SMALL_POOL),
            "two_ranks": (chain, ("--dp-size", "2"), 4096),
            "easd_chain": (ServeArm("easd_chain", "EDSD", edsd), (*EASD, "--enable-metrics"), 8192),
            "easd_eagle3": (ServeArm("easd_eagle3", "EAGLE3", eagle3), EASD, 8192),
            "easd_small": (
                ServeArm("easd_small", "EDSD", edsd, 4, 3, 12),
                (*EASD, *SMALL, "--dp-size", "2"),
                SMALL_POOL,
            ),
            "two_drafters": (chain, (*two, "--enable-metrics"), 8192),
            "two_small": (tree, (*two, *SMALL), SMALL_POOL),
            "qwen3": (chain, (), 8192),
            "stop_svip": (chain, ("--speculative-draft-stop", "svip"), 8192),
        }
        self.targets = {
            "easd_small": pair.write_broken_target(folder / "broken", self.target),
            "qwen3": pair.write_qwen3_target(folder / "qwen3", self.target),
        }
        # EASD checks drafted tokens: with the CPU engine's pruning, those depend on the batch (as
        # does how many are accepted).
        self.environment = {
            name: {"SGL_ENTROPY_CPU_CYCLE_ROWS": "inf"}
            for name in ("easd_chain", "easd_eagle3", "two_drafters", "stop_svip")
        }
        self.folder = folder
        self._pool = ThreadPoolExecutor(2)
        self._running: dict[str, Future[Server]] = {}
        self._ports = threading.Lock()

    def _start(self, name: str) -> Server:
        arm, flags, tokens = self.arms[name]
        target = self.targets.get(name, self.target)
        engine = Engine(target, max_total_tokens=tokens, extra_flags=flags)
        with self._ports:
            port = free_port()
        server = Server(
            name,
            engine.command(arm, port),
            port,
            self.folder / f"{name}.log",
            engine.environment() | self.environment.get(name, {}),
            ready_timeout_s=400.0,
        )
        return server.start()

    def server(self, name: str) -> Server:
        wanted = COMPARED if name in COMPARED else (name,)
        for each in wanted:
            if each not in self._running:
                self._running[each] = self._pool.submit(self._start, each)
        return self._running[name].result()

    def client(self, name: str) -> EngineClient:
        return EngineClient(self.server(name).client, name)

    def stop(self, name: str) -> None:
        self._running.pop(name).result().stop()

    def release(self, *names: str) -> None:
        """Stop those that run: servers of one module alone, and whoever polls takes a core."""
        for name in names:
            if name in self._running:
                self.stop(name)

    def close(self) -> None:
        for name in list(self._running):
            if self._running[name].exception() is None:
                self.stop(name)
        self._pool.shutdown()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("engine"))
    yield fleet
    fleet.close()


@pytest.fixture(scope="session")
def none(fleet: Fleet) -> EngineClient:
    """The server without speculation, which every other is compared with."""
    return fleet.client("none")


@pytest.fixture(scope="session", params=COMPARED[1:])
def drafting(request: pytest.FixtureRequest, fleet: Fleet) -> EngineClient:
    """Each server that drafts, one after the other."""
    return fleet.client(request.param)


@pytest.fixture(scope="session", params=COMPARED)
def any_server(request: pytest.FixtureRequest, fleet: Fleet) -> EngineClient:
    return fleet.client(request.param)


@pytest.fixture(scope="session")
def fleet_urls(fleet: Fleet) -> dict[str, str]:
    """Addresses of the servers that most tests compare."""
    return {name: f"http://127.0.0.1:{fleet.server(name).port}" for name in COMPARED}


@pytest.fixture
def only_once(fleet: Fleet) -> Iterator[Callable[[str], EngineClient]]:
    """Servers that one test alone needs; they are stopped after it."""
    names: list[str] = []

    def start(name: str) -> EngineClient:
        names.append(name)
        return fleet.client(name)

    yield start
    for name in names:
        fleet.stop(name)


@pytest.fixture(scope="session", params=COMPARED[:3])
def sampling_server(request: pytest.FixtureRequest, fleet: Fleet) -> EngineClient:
    """Without speculation, with a chain and with a tree: what sampling distinguishes."""
    return fleet.client(request.param)
