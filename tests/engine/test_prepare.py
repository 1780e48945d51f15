"""Training answers through a real server are those that the target writes here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.train.samples.store import Store
from tests.engine.conftest import Fleet

PROMPTS = [tuple(range(3 + i, 12 + 2 * i)) for i in range(6)]


@pytest.mark.parametrize("server", ["none", "edsd_chain"])
def test_served_answers_equal_local_ones(fleet: Fleet, tmp_path: Path, server: str) -> None:
    """With a drafter as well: speculation is lossless, and answering is faster with it."""
    client = fleet.server(server).client
    rows = [{"prompt_id": i, "tokens": ids} for i, ids in enumerate(PROMPTS)]
    words = ["--target", str(fleet.target)]
    for one in ("drafter.edsd_layers=[0, 1]", "generate.dtype=float32"):
        words += ["--set", one]
    words += ["--set", "generate.max_new_tokens=24", "--set", "generate.workers=1"]

    def stage(name: str, folder: str, *more: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "prompts.jsonl").write_text(lines)
        assert main(["train", name, *words, "--work", str(tmp_path / folder), *more]) == 0

    stage("prepare", "served", "--server", f"http://{client.host}:{client.port}")
    stage("features", "served")
    stage("features", "local")
    served, local = Store(tmp_path / "served" / "store"), Store(tmp_path / "local" / "store")
    assert len(local.entries) == len(PROMPTS)
    for one, two in zip(served.entries, local.entries, strict=True):
        assert torch.equal(served.tokens(one), local.tokens(two))
        a, b = served.sample(one), local.sample(two)
        torch.testing.assert_close(a.features, b.features, rtol=2**-6, atol=1e-2)
        torch.testing.assert_close(a.entropy, b.entropy, rtol=1e-3, atol=1e-3)


def test_no_server_is_one_clear_message(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "prepare", "--target", str(fleet.target), "--work", str(tmp_path)]
    assert main([*words, "--server", "http://127.0.0.1:9"]) == 2
    assert "--server http://127.0.0.1:9" in capsys.readouterr().err
