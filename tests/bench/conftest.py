"""The fake server in a thread, and a launcher for it as a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sgl_entropy_bench.figures.figure_plan import BENCHMARKS, FigurePlan
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.server.arms import Engine
from sgl_entropy_bench.server.launch import Server, free_port

from tests.bench.sglang_program import SglangServer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PROGRAM = ("-m", "tests.bench.sglang_program")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake_client() -> Iterator[Callable[..., Client]]:
    """``fake_client("--flag", ...)``: a client of a fresh fake server with these flags."""
    with ExitStack() as stack:

        def make(*words: str) -> Client:
            server = stack.enter_context(SglangServer(words))
            return Client("127.0.0.1", server.port, timeout_s=10.0)

        yield make


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``launch("--flag", ...)``: a Server, not started, that would run the fake program."""
    made: list[Server] = []

    def make(*words: str, name: str = "fake", port: int | None = None, **options: float) -> Server:
        port = port or free_port()
        command = [sys.executable, *PROGRAM, "--port", str(port), *words]
        made.append(Server(name, command, port, tmp_path / f"{name}.log", **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target's folder, as far as the measuring side reads it."""
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 10000}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    write_weights(folder, b"targ")
    return folder


def write_weights(folder: Path, content: bytes) -> None:
    """A safetensors file with one tensor of four bytes: enough to tell models apart."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    length = len(header).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(length + header + content)


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """A program in Python's place: ``-m sglang.launch_server ...`` runs the fake server."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} {" ".join(PROGRAM)} "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Six prompts of each benchmark."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in BENCHMARKS:
        rows = [{"question_id": i, "turns": [f"{name} {i}", "more"]} for i in range(6)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def plan(target: Path, prompts: Path, fake_python: str, tmp_path: Path) -> FigurePlan:
    """Of a quick figure of the fake server."""
    engine = Engine(target, python=fake_python, extra_flags=("--cycle-s", "0.005"))
    drafters = []
    for name in ("eagle3", "edsd"):
        drafters.append(tmp_path / name)
        drafters[-1].mkdir()
        write_weights(drafters[-1], name[:4].encode())
    work, results = tmp_path / "work", tmp_path / "results"
    return FigurePlan(engine, drafters[0], drafters[1], prompts, work, results, quick=True)
