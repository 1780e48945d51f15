"""Other load testers than ours: where they are, how each is run, when it means to send.

They are run as they are, by ``peer``, and are no dependencies: one that is not installed is left
out of the figure, which says so.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path


@dataclass(frozen=True)
class PeerLoad:
    """Poisson arrivals for a client: ``count`` of them, ``rate`` a second on average.

    ``tokenizer`` is a folder with one, for clients that make their prompts with it.
    """

    url: str
    tokenizer: Path
    rate: float
    count: int
    tokens: int
    seed: int


@dataclass(frozen=True)
class Sent:
    """What a client was to do and what that took.

    ``times``: when it meant to send, in s. ``cpu_s``: its processor time from the first request on.
    """

    times: list[float]
    cpu_s: float
    version: str = ""


@dataclass(frozen=True)
class Peer:
    """Another load tester.

    ``words`` are the arguments of ``module`` for a load; ``times`` makes a schedule of the gaps
    that it drew; ``habit`` says how it waits, ``install`` how to get it.
    """

    name: str
    module: str
    words: Callable[[PeerLoad], list[str]]
    times: Callable[[Sequence[float], PeerLoad], list[float]]
    habit: str
    install: str

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def _bench_serving_words(load: PeerLoad) -> list[str]:
    return [
        *("--backend", "sglang", "--base-url", load.url),
        *("--model", str(load.tokenizer), "--tokenizer", str(load.tokenizer)),
        *("--dataset-name", "random-ids", "--random-input-len", "16"),
        *("--random-output-len", str(load.tokens), "--random-range-ratio", "1"),
        *("--num-prompts", str(load.count), "--request-rate", str(load.rate)),
        *("--seed", str(load.seed), "--output-file", os.devnull, "--disable-tqdm"),
        *("--warmup-requests", "1"),
    ]


def _after_each(gaps: Sequence[float], load: PeerLoad) -> list[float]:
    """It sends one, then waits for a gap: the last gap follows the last request."""
    return [0.0, *itertools.accumulate(gaps[: load.count - 1])]


def _vllm_words(load: PeerLoad) -> list[str]:
    return [
        *("bench", "serve", "--backend", "openai", "--base-url", load.url),
        *("--model", str(load.tokenizer), "--dataset-name", "random", "--random-input-len", "16"),
        *("--random-output-len", str(load.tokens), "--random-range-ratio", "0"),
        *("--num-prompts", str(load.count), "--request-rate", str(load.rate)),
        *("--burstiness", "1.0", "--seed", str(load.seed), "--disable-tqdm"),
    ]


def _scaled(gaps: Sequence[float], load: PeerLoad) -> list[float]:
    """A gap before each, all of them stretched so that they last as long as the rate says."""
    stretch = load.count / load.rate / sum(gaps)
    return [stretch * time for time in itertools.accumulate(gaps)]


PEERS = (
    Peer(
        "sglang.bench_serving",
        "sglang.bench_serving",
        _bench_serving_words,
        _after_each,
        "sends, draws a gap and sleeps for it; what it is late by adds up",
        "python -m pip install sglang==0.5.6.post2",
    ),
    Peer(
        "vllm bench serve",
        "vllm.entrypoints.cli.main",
        _vllm_words,
        _scaled,
        "draws all gaps first, stretches them to exactly the asked rate and sleeps to the "
        "resulting times of the system's clock",
        # vLLM without its kernels (18 MB to fetch), and what its command line imports that
        # SGLang's environment does not have.
        "python -m pip install --no-deps --target DIR setuptools-scm vcs-versioning cbor2 blake3 "
        "cachetools py-cpuinfo lm-format-enforcer==0.11.3 interegular ijson jmespath watchfiles "
        "'model-hosting-container-standards<1'\n"
        "VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=0.13.0 PYTHONPATH=DIR python -m pip "
        "install --no-deps --no-build-isolation --no-binary vllm --target DIR vllm==0.13.0",
    ),
)


def installed(folder: Path | None) -> list[Peer]:
    """Those that can be imported, from ``folder`` or from this environment.

    Raises ValueError where a folder is given that has none of them.
    """
    here = [peer for peer in PEERS if folder is not None and _is_in(peer.package, folder)]
    if folder is not None and not here:
        raise ValueError(
            f"--peer-path {folder}: expected the package of another load tester in this folder "
            f"({', '.join(peer.package for peer in PEERS)}), found none\n\n{how_to_install(PEERS)}"
        )
    return [peer for peer in PEERS if peer in here or _is_in(peer.package)]


def _is_in(package: str, folder: Path | None = None) -> bool:
    if folder is None:
        spec = importlib.util.find_spec(package)
    else:
        spec = PathFinder.find_spec(package, [str(folder)])
    # A folder that only happens to have the name is a package without an origin.
    return spec is not None and spec.origin is not None


def how_to_install(peers: Sequence[Peer]) -> str:
    """Commands that bring them into a folder DIR, for ``--peer-path DIR``."""
    lines = ["For this comparison only, in SGLang's environment; DIR is an absolute path:"]
    for peer in peers:
        lines += [f"\n# {peer.name}", peer.install]
    return "\n".join([*lines, "\nsgl-entropy figures clients --peer-path DIR"])


def run(peer: Peer, load: PeerLoad, busy: float, folder: Path | None) -> Sent:
    """Let it send a load while ``busy`` of its event loop's time is taken.

    Raises RuntimeError where it or one of its requests fails, or its schedule is not known.
    """
    with tempfile.TemporaryDirectory() as work:
        notes = Path(work) / "notes.json"
        command = [
            *(sys.executable, "-m", "sgl_entropy_bench.figures.peer", "--notes", str(notes)),
            *("--busy", str(busy), peer.module, *peer.words(load)),
        ]
        environment = dict(os.environ)
        if folder is not None:
            known = environment.get("PYTHONPATH", "").split(os.pathsep)
            paths = [str(folder.resolve()), *filter(None, known)]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode or not notes.is_file():
            raise RuntimeError(f"{peer.name} failed:\n{done.stderr[-2000:]}")
        noted = json.loads(notes.read_text())
    # They end with status 0 even where every request failed.
    well = re.search(r"Successful requests:\s+(\d+)", done.stdout)
    if well is None or int(well[1]) != load.count:
        raise RuntimeError(
            f"{peer.name}: expected {load.count} successful requests, it reports "
            f"{well[1] if well else 'none'}:\n{done.stdout[-2000:]}"
        )
    draws = noted["draws"][-load.count :]
    if len(draws) < load.count:
        raise RuntimeError(
            f"{peer.name} {noted['version']} drew {len(draws)} gaps for {load.count} requests with "
            "numpy.random: its schedule is not known"
        )
    gaps = [gap for gap, _ in draws]
    return Sent(peer.times(gaps, load), noted["cpu_s"] - draws[0][1], noted["version"])
