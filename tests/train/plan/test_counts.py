"""Estimates against what really is made: counted exactly, timed within a factor on tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train.compare.costs import flops
from sgl_entropy.train.plan import estimate
from sgl_entropy.train.plan.counts import Seconds, count
from sgl_entropy.train.plan.gpu import GPUS, gpu_seconds
from sgl_entropy.train.plan.lengths import Lengths, drawn, expected_lengths
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import tiny_config, tiny_prompts
from tests.train.fit.test_processes import work_folder

EDTRAIN = ["fit.epochs=3", "fit.max_steps=4", "fit.mask_gamma=20", "fit.rows=40"]


def settings_of(work: Path, target: Path, more: list[str]) -> list[str]:
    base = [f"work={work}", f"target={target}", "fit.dtype=float32", "generate.dtype=float32"]
    sizes = ["drafter.edsd_layers=[1, 2]", "drafter.draft_vocab_size=96", "fit.validation_every=8"]
    lengths = ["generate.max_new_tokens=20", "generate.workers=1", "generate.slots=5"]
    return [*base, *sizes, *lengths, *more]


@pytest.mark.parametrize(
    "more",
    [
        ["fit.epochs=2", "fit.steps=[1, 3]"],
        EDTRAIN,
        ["fit.epochs=2", "fit.optimizer=muon"],
        ["fit.epochs=2", "fit.answer_tokens=150"],
        ["fit.epochs=2", "fit.answer_length=7"],
    ],
)
def test_counts_are_those_of_the_real_run(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, more: list[str]
) -> None:
    """From a finished store, rows, FLOPs, steps and bytes come out as the run counts them."""
    work = work_folder(tmp_path / "work", tiny_store)
    settings = load_settings(None, settings_of(work, tiny_folder, more))
    run = drafter.make_fit(Workspace.of(settings), "EDSD")
    run.run(lambda line: None)
    model = json.loads((tiny_folder / "config.json").read_text())
    given = replace(settings.generate, answer_tokens=tiny_store.answer_tokens())
    lengths = expected_lengths(tiny_prompts(), given, tiny_store)
    held = count(lengths, model, len(tiny_store.tap_layers), run.config, settings.fit)
    assert lengths.sequences == len(tiny_store.entries)
    assert held.answer_tokens == tiny_store.answer_tokens()
    rows = sum(cost["layer_rows"] for cost in run.costs.values())
    assert held.fit_rows == rows
    planned = held.fit_flops + held.optimizer_flops
    assert planned == pytest.approx(flops(run), rel=0.15), "tokens outside the vocabulary"
    assert (held.optimizer_flops > 0) == ("fit.optimizer=muon" in more)
    assert held.optimizer_steps == pytest.approx(run.step, rel=0.1, abs=1), "orders differ"
    assert held.store_bytes == pytest.approx(tiny_store.bytes(), rel=0.2), "headers count here"
    learned = sum(weight.numel() for weight in run.drafter.parameters())
    assert held.parameters == learned


def test_schedules_make_a_plan_cheaper() -> None:
    config = tiny_config("EDSD", (1, 2))
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    model |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 160}
    lengths = Lengths(tuple(drawn(i, 50, 100) for i in range(1000)))
    fixed = load_settings(None, ["fit.epochs=10", "fit.steps=[7]"]).fit
    edtrain = replace(fixed, max_steps=7, mask_gamma=3.0)
    reached = replace(fixed, reached_only=True)
    dear, cheap, half = (count(lengths, model, 3, config, f) for f in (fixed, edtrain, reached))
    assert half.fit_rows == pytest.approx(
        dear.fit_rows * sum(0.5**step for step in range(7)) / 7, rel=0.03
    )
    assert cheap.fit_rows == pytest.approx(
        dear.fit_rows * sum([1, 1, 2, 3, 3, 4, 5, 5, 6, 7]) / 70, rel=0.03
    )
    assert cheap.fit_flops < 0.6 * dear.fit_flops


def test_a_larger_gpu_is_faster() -> None:
    config = tiny_config("EDSD", (1, 2))
    model = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    model |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    lengths = Lengths(tuple(drawn(i, 300, 500) for i in range(20_000)))
    fit = load_settings(None, []).fit
    counts = count(lengths, model, 3, config, fit)
    # 7.5 billion weights outside the embedding, twice, a token.
    assert counts.generate_flops == pytest.approx(2 * 7.5e9 * 16e6, rel=0.01)
    times = {name: gpu_seconds(gpu, counts, lengths, model, 64, 0) for name, gpu in GPUS.items()}
    assert times["h200"].generate < times["h100"].generate < times["a100"].generate
    # Reading the weights once for 64 sequences bounds decoding, beside the layers' small kernels.
    steps = 20_000 * 500 / 64
    read, small = steps * 15e9 / 3.35e12, steps * 32 * 46 * 22e-6
    assert read + small < times["h100"].generate < 3 * read + small


def test_the_command_measures_and_prints(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    (work / "store").rename(work / "elsewhere")
    there = sorted(work.rglob("*"))
    words = ["train", "--plan", "--json", str(tmp_path / "plan.json")]
    for one in settings_of(work, tiny_folder, ["generate.answer_tokens=300", *EDTRAIN]):
        words += ["--set", one]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "EDSD on this machine" in printed
    held = json.loads((tmp_path / "plan.json").read_text())
    assert 0 < held["fit_seconds"] < 600
    assert 0 < held["generate_seconds"] < 600
    assert "assumed" in held["lengths"]["origin"]
    assert "entries" not in held["lengths"]
    assert sorted(work.rglob("*")) == there, "a plan leaves nothing behind"
    assert main([*words, "--gpu", "abacus"]) == 2
    assert "--gpu must be one of a100" in capsys.readouterr().err


def test_what_is_answered_already_is_not_generated_again(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    """Neither the answers of a store nor those of a file; of the latter, features are to come."""
    work = work_folder(tmp_path / "work", tiny_store)
    enough = f"generate.answer_tokens={tiny_store.answer_tokens()}"
    given = settings_of(work, tiny_folder, [enough, "fit.epochs=3"])

    def planned(*more: str) -> dict[str, Any]:
        return estimate.plan(
            Workspace.of(load_settings(None, [*given, *more])),
            "EDSD",
            GPUS["h100"],
            lambda line: None,
        )

    stored = planned()
    assert stored["lengths"]["to_generate"] == 0
    assert stored["generate_seconds"] == stored["generate_flops"] == stored["feature_flops"] == 0
    assert stored["generate_memory_bytes"] == 0
    (work / "store").rename(work / "elsewhere")
    whole = planned()
    assert whole["lengths"]["to_generate"] > 0
    assert whole["generate_flops"] > 0
    assert whole["generate_memory_bytes"] > 0

    answers = [
        {
            "prompt_id": entry.prompt_id,
            "prompt_length": entry.prompt_length,
            "tokens": tiny_store.tokens(entry).tolist(),
        }
        for entry in tiny_store.entries
    ]
    text = "".join(json.dumps(answer) + "\n" for answer in answers)
    (work / "answers.jsonl").write_text(text)
    read = planned()
    assert read["generate_flops"] == read["generate_memory_bytes"] == 0
    assert read["feature_flops"] > 0
    assert read["answer_tokens"] == stored["answer_tokens"]
    assert read["fit_flops"] == pytest.approx(stored["fit_flops"])

    online = planned("fit.online=true")
    assert online["store_bytes"] == online["feature_flops"] == 0
    kept = planned("fit.online=true", "fit.hold_gb=1")
    assert online["online_flops"] == pytest.approx(3 * kept["online_flops"], rel=0.2), "epochs"
    assert online["fit_memory_bytes"] > read["fit_memory_bytes"]
    twice = planned("fit.online=true", "generate.temperatures=[0.0, 0.8]", enough + "0")
    prompts = len(tiny_prompts())
    assert twice["lengths"]["sequences"] == pytest.approx(2 * prompts, abs=4)


def test_seconds_are_measured_where_features_are_computed_online(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    (work / "store").rename(work / "elsewhere")
    more = ["fit.online=true", "fit.optimizer=muon", "generate.answer_tokens=300", "fit.rows=60"]
    settings = load_settings(None, settings_of(work, tiny_folder, more))
    held = estimate.plan(Workspace.of(settings), "EDSD", None, lambda line: None)
    assert 0 < held["fit_seconds"] < 600
    assert held["online_flops"] > 0
    assert held["optimizer_flops"] > 0


def test_a_machine_with_a_gpu_is_told_whose_seconds_these_are(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(estimate, "measure_here", lambda trial: Seconds(1.0, 2.0, "of a test"))
    given = load_settings(None, settings_of(work, tiny_folder, ["fit.reached_only=true"]))
    held = estimate.plan(Workspace.of(given), "EDSD", None, lambda line: None)
    assert "(NVIDIA H200): fit, compare and evaluate use it, prepare with" in held["notes"][0]
    assert "generate does not. These seconds are of its CPU" in held["notes"][0]
    assert held["notes"][1].startswith("fit.reached_only: 50% of the chains")


def test_no_stage_is_one_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "name a stage (prepare" in capsys.readouterr().err
