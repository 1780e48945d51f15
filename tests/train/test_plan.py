"""Estimates against what really is made: counted exactly, timed within a factor on tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train import pipeline
from sgl_entropy.train.fit_costs import flops
from sgl_entropy.train.plan import GPUS, count, gpu_seconds
from sgl_entropy.train.plan_lengths import Lengths, drawn, expected_lengths
from sgl_entropy.train.settings import load_settings
from sgl_entropy.train.store import Store
from tests.train.conftest import tiny_config, tiny_prompts
from tests.train.test_group import work_folder

EDTRAIN = ["fit.epochs=3", "fit.max_steps=4", "fit.mask_gamma=20", "fit.rows=40"]


def settings_of(work: Path, target: Path, more: list[str]) -> list[str]:
    base = [f"work={work}", f"target={target}", "fit.dtype=float32", "generate.dtype=float32"]
    sizes = ["drafter.edsd_layers=[1, 2]", "drafter.draft_vocab_size=96", "fit.validation_every=8"]
    lengths = ["generate.max_new_tokens=20", "generate.workers=1", "generate.slots=5"]
    return [*base, *sizes, *lengths, *more]


@pytest.mark.parametrize(
    "more",
    [["fit.epochs=2", "fit.steps=[1, 3]"], EDTRAIN, ["fit.epochs=2", "fit.answer_tokens=150"]],
)
def test_counts_are_those_of_the_real_run(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, more: list[str]
) -> None:
    """From a finished store, rows, FLOPs, steps and bytes come out as the run counts them."""
    work = work_folder(tmp_path / "work", tiny_store)
    settings = load_settings(None, settings_of(work, tiny_folder, more))
    run = pipeline.make_fit(settings, "EDSD")
    run.run(lambda line: None)
    model = json.loads((tiny_folder / "config.json").read_text())
    given = replace(settings.generate, answer_tokens=tiny_store.answer_tokens())
    lengths = expected_lengths(tiny_prompts(), given, tiny_store)
    held = count(lengths, model, len(tiny_store.tap_layers), run.config, settings.fit)
    assert lengths.sequences == len(tiny_store.entries)
    assert held.answer_tokens == tiny_store.answer_tokens()
    rows = sum(cost["layer_rows"] for cost in run.costs.values())
    assert held.fit_rows == rows
    assert held.fit_flops == pytest.approx(flops(run), rel=0.15), "tokens outside the vocabulary"
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
    dear, cheap = (count(lengths, model, 3, config, fit) for fit in (fixed, edtrain))
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
    times = {name: gpu_seconds(gpu, counts, lengths, model, 64) for name, gpu in GPUS.items()}
    assert times["h200"].generate < times["h100"].generate < times["a100"].generate
    # Reading the weights once for 64 sequences bounds decoding on an H100.
    least = 20_000 * 500 / 64 * 15e9 / 3.35e12
    assert least < times["h100"].generate < 3 * least


def test_the_command_measures_and_prints(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    (work / "store").rename(work / "elsewhere")
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
    assert not (work / "store").exists(), "a plan leaves nothing behind"
    assert not (work / "edsd").exists()
    assert main([*words, "--gpu", "abacus"]) == 2
    assert "--gpu must be one of a100" in capsys.readouterr().err


def test_no_stage_is_one_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "name a stage (prepare" in capsys.readouterr().err
