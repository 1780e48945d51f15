"""The load tester against the real SGLang: what it counts is what the server counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sgl_entropy_bench.http.record import read_records

from sgl_entropy.cli import main
from tests.engine.client import EngineClient


@pytest.mark.parametrize("stream", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_two_arms_under_poisson_arrivals(
    stream: tuple[str, ...],
    none: EngineClient,
    fleet_urls: dict[str, str],
    tmp_path: Path,
) -> None:
    prompts = tmp_path / "texts.jsonl"
    rows = [{"id": i, "prompt": f"{i} and the thing that is {i * 7}"} for i in range(24)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    words = ("latency", "--arms", f"none={fleet_urls['none']},edsd={fleet_urls['edsd_chain']}")
    code = main(
        [
            *("bench", *words, "--prompts", str(prompts), "--api", "generate", *stream),
            *("--qps", "6", "--num-requests", "16", "--ramp", "2", "--max-tokens", "24"),
            *("--ignore-eos", "--warmup", "2", "--out", str(out)),
        ]
    )
    assert code in (0, 3)  # a busy machine may be late, which makes a run invalid
    report = json.loads((out / "result.json").read_text())
    plain, drafted = report["results"]
    assert plain["errors"] == drafted["errors"] == 0
    assert drafted["against"]["equal_outputs"] == 1.0
    assert 1.5 < drafted["tau"] < 5
    records = read_records(out / "edsd-qps-6.jsonl")
    measured = [record for record in records if record.phase == "measured"]
    assert len(measured) == 16
    assert all(record.completion_tokens == 24 for record in measured)
    assert all(record.emitted == 23 for record in measured)  # the first comes from the prompt
    assert drafted["server"]["arguments"]["speculative_algorithm"] == "EDSD"
    if not stream:
        assert all(record.chunks[-1][1] == 24 for record in measured)
        assert all(record.first < record.last for record in measured)  # type: ignore[operator]
    none.settle()
