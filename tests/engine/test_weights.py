"""Weights written while serving are those that answer from then on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine import pair
from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED

LENGTH = 12


def greedy(folder: Path) -> list[list[int]]:
    target = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in MIXED:
        ids = target.generate(
            torch.tensor([prompt]), max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False
        )
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("name", ["none", "edsd_tree"])
def test_a_target_read_anew_from_disk(fleet: Fleet, tmp_path: Path, name: str) -> None:
    client = fleet.client(name)

    def answers() -> list[list[int]]:
        replies = client.batch(MIXED, LENGTH, min_new_tokens=LENGTH)
        return [reply["output_ids"] for reply in replies]

    def serve(folder: Path) -> None:
        reply = client.http.post("/update_weights_from_disk", {"model_path": str(folder)})
        assert reply["success"], reply

    before = answers()
    other = pair.write_target(tmp_path / "other", layer_scale=0.06)
    serve(other)
    try:
        assert answers() == greedy(other) != before
        for wrong in ({"model_path": str(tmp_path / "none")}, {"load_format": "{}"}):
            body = {"model_path": str(fleet.target), **wrong}
            status, _ = client.refusal(body, "/update_weights_from_disk")
            assert status == 400
        assert answers() == greedy(other)
    finally:
        serve(fleet.target)
    assert answers() == before == greedy(fleet.target)
