"""Real SGLang servers on this machine's CPU, started once and shared by all engine tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server, free_port

from tests.engine import pair
from tests.engine.client import EngineClient, RememberingClient

PROCESSORS = ("--enable-custom-logit-processor",)
# Without speculation but also without overlap: upstream's overlap schedule applies penalties
# one token late, and speculation switches it off.
PLAIN = (*PROCESSORS, "--disable-overlap-schedule")
# Requests are taken in until the pool is full, and some are thrown out again ...
EAGER = ("--schedule-conservativeness", "0.01")
POOL = 1536
# ... also where one alone may fill it, and prompts come in small chunks.
SMALL = (*EAGER, "--chunked-prefill-size", "32")
SMALL_POOL = 480
# Low thresholds: the tiny target and its drafters are seldom unsure of the same tokens.
EASD = (
    *("--speculative-verify-mode", "easd", "--easd-top-n", "5", "--easd-overlap", "0.2"),
    *("--easd-target-entropy", "1.0", "--easd-draft-entropy", "1.0"),
)
STOP = ("--speculative-draft-stop", "svip")
# Steps, branches and draft tokens of a tree.
TREE = (4, 3, 12)
# Started together, two at a time, as most tests compare all of them.
COMPARED = ("none", "edsd_chain", "edsd_tree", "eagle3")
# Requests that say nothing of the mode are verified exactly: sent by the client of a server that
# answers both questions.
EXACT = {"easd": False}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


class Fleet:
    """The eight servers of a session by name, each started when it is first asked for.

    ``none``, ``edsd_chain``, ``edsd_tree``: no mode, and trees and chains of drafts that are
    pruned. ``eagle3``: EAGLE-3 under EASD. ``easd_chain``: EDSD under EASD, on a Qwen3.
    ``two_drafters``: of which the larger has every option of its layout. ``stop``: chains that end
    early. ``crowd``: trees, EASD, two drafters, two ranks and a token that breaks the logits.
    """

    def __init__(self, folder: Path) -> None:
        self.target = pair.write_target(folder / "target")
        self.edsd = pair.write_edsd(folder / "edsd", self.target)
        self.eagle3 = pair.write_eagle3(folder / "eagle3", self.target)
        variant = pair.write_edsd_variant(folder / "variant", self.target)
        half = pair.write_edsd_small(folder / "edsd_half", self.target)
        # Thresholds within what the tiny target meets at every other cycle.
        two = (
            *("--speculative-second-draft-model-path", str(half)),
            *("--speculative-drafter-switch", "1.2,1.4"),
        )

        arms = (
            (ServeArm("none"), PLAIN, 8192),
            (ServeArm("edsd_chain", "EDSD", self.edsd), (*PROCESSORS, *EAGER), POOL),
            (ServeArm("edsd_tree", "EDSD", self.edsd, *TREE), (*PROCESSORS, *EAGER), POOL),
            (ServeArm("eagle3", "EAGLE3", self.eagle3), (*PROCESSORS, *EASD), 8192),
            (ServeArm("easd_chain", "EDSD", self.edsd), (*EASD, "--enable-metrics"), 8192),
            (ServeArm("two_drafters", "EDSD", variant), (*two, "--enable-metrics"), 8192),
            (ServeArm("stop", "EDSD", self.edsd), (*STOP, *SMALL), SMALL_POOL),
            (
                ServeArm("crowd", "EDSD", self.edsd, *TREE),
                (*EASD, *two, *SMALL, "--dp-size", "2"),
                SMALL_POOL,
            ),
        )
        self.arms = {arm.name: (arm, flags, tokens) for arm, flags, tokens in arms}
        self.targets = {
            "easd_chain": pair.write_qwen3_target(folder / "qwen3", self.target),
            "crowd": pair.write_broken_target(folder / "broken", self.target),
        }
        # EASD checks drafted tokens: with the CPU engine's pruning, those depend on the batch (as
        # does how many are accepted).
        self.environment = {
            name: {"SGL_ENTROPY_CPU_CYCLE_ROWS": "inf"}
            for name in ("eagle3", "easd_chain", "two_drafters", "stop")
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
        """A client; those of ``eagle3`` and ``crowd`` ask for exact verification (``EXACT``)."""
        settings = {"custom_params": EXACT} if name in ("eagle3", "crowd") else {}
        return EngineClient(self.server(name).client, name, settings)

    def served_target(self, name: str) -> Path:
        """The folder of the target that a server serves."""
        return self.targets.get(name, self.target)

    def stop(self, name: str) -> None:
        self._running.pop(name).result().stop()

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
    return RememberingClient(fleet.server("none").client, "none")


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


@pytest.fixture(scope="session", params=COMPARED[:3])
def sampling_server(request: pytest.FixtureRequest, fleet: Fleet) -> EngineClient:
    """Without speculation, with a chain and with a tree: what sampling distinguishes."""
    return fleet.client(request.param)
