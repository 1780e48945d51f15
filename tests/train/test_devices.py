"""Stages compute on the GPU where there is one, or say that they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sgl_entropy.evaluate import offline
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import data
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import tiny_prompts


def test_tau_is_measured_where_a_drafter_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models on the device that ``device_of`` names; torch's meta stands for a GPU."""

    def load_pair(target: Path, drafter: Path, dtype: torch.dtype, device: str) -> None:
        raise RuntimeError(f"{target.name} and {drafter.name} on {device}")

    monkeypatch.setattr(pipeline, "device_of", lambda number: "meta")
    monkeypatch.setattr(pipeline, "benchmark_prompts", lambda settings: {})
    monkeypatch.setattr(offline, "load_pair", load_pair)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text("{}")
    settings = load_settings(None, [f"target={tmp_path / 'target'}"])
    with pytest.raises(RuntimeError, match="target and edsd on meta"):
        pipeline.evaluate(Workspace.of(settings), tmp_path / "edsd")


@pytest.mark.parametrize("gpu", [True, False])
def test_decoding_here_says_that_it_leaves_the_gpu_idle(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"work={tmp_path}", f"target={tiny_folder}", "drafter.edsd_layers=[1, 2]"]
    given += ["generate.dtype=float32", "generate.max_new_tokens=20"]

    def begun(*plans: object) -> None:
        raise RuntimeError("begun")

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(data, "run_processes", begun)
    lines: list[str] = []
    with pytest.raises(RuntimeError, match="begun"):
        data.generate(Workspace.of(load_settings(None, given)), lines.append)
    said = [line for line in lines if "on the CPU, not on the NVIDIA H200" in line]
    assert len(said) == gpu
    assert all("fit.online=true" in line and "--server URL" in line for line in said)
