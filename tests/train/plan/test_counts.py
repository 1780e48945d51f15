"""Counts of a plan against what is really made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train.compare.records import FitRecord
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.plan.counts import Counts, count, muon_flops
from sgl_entropy.train.plan.estimate import counted, known_lengths
from sgl_entropy.train.plan.lengths import Lengths, drawn, expected_lengths
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.settings.fit import FitSettings
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


@pytest.mark.slow
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
    run_fit(run, lambda line: None)
    model = json.loads((tiny_folder / "config.json").read_text())
    given = replace(settings.generate, answer_tokens=tiny_store.answer_tokens())
    lengths = expected_lengths(tiny_prompts(), given, tiny_store)
    counts = count(lengths, model, len(tiny_store.tap_layers), run.config, settings.fit)
    assert lengths.sequences == len(tiny_store.entries)
    assert counts.answer_tokens == tiny_store.answer_tokens()
    real = FitRecord.of(run)
    assert counts.fit_rows == real.rows("layer_rows")
    planned = counts.fit_flops + counts.optimizer_flops
    assert planned == pytest.approx(real.flops, rel=0.15), "tokens outside the vocabulary"
    assert (counts.optimizer_flops > 0) == ("fit.optimizer=muon" in more)
    assert counts.optimizer_steps == pytest.approx(run.step, rel=0.1, abs=1), "orders differ"
    assert counts.store_bytes == pytest.approx(tiny_store.bytes(), rel=0.2), "headers count here"
    learned = sum(weight.numel() for weight in run.drafter.parameters())
    assert counts.parameters == learned


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


def test_flops_of_a_large_target() -> None:
    model = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    model |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    lengths = Lengths(tuple(drawn(i, 300, 500) for i in range(20_000)))
    fit = load_settings(None, []).fit
    counts = count(lengths, model, 3, tiny_config("EDSD", (1, 2)), fit)
    # 7.5 billion weights outside the embedding, twice, a token.
    assert counts.generate_flops == pytest.approx(2 * 7.5e9 * 16e6, rel=0.01)


def test_muon_costs_its_matmuls() -> None:
    """Fifteen a matrix and step."""
    config = tiny_config("EAGLE3", (0, 1, 2))
    # q [32, 64], k and v [16, 64], o [32, 32], gate and up [48, 32], down [32, 48].
    shapes = [(32, 64), (16, 64), (16, 64), (32, 32), (32, 48), (32, 48), (32, 48)]
    rounds = sum(5 * (4 * short**2 * long + 2 * short**3) for short, long in shapes)
    assert muon_flops(config, FitSettings(optimizer="muon")) == rounds
    assert muon_flops(config, FitSettings(optimizer="adamw")) == 0


def test_what_is_answered_already_is_not_generated_again(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    """Neither the answers of a store nor those of a file; of the latter, features are to come."""
    work = work_folder(tmp_path / "work", tiny_store)
    enough = f"generate.answer_tokens={tiny_store.answer_tokens()}"
    given = settings_of(work, tiny_folder, [enough, "fit.epochs=3"])

    def planned(*more: str) -> tuple[Lengths, Counts]:
        asked = Workspace.of(load_settings(None, [*given, *more]))
        lengths = known_lengths(asked, lambda line: None)
        return lengths, counted(asked, drafter.drafter_config(asked, "EDSD"), lengths)

    lengths, stored = planned()
    assert lengths.new == []
    assert stored.generate_flops == stored.feature_flops == 0
    (work / "store").rename(work / "elsewhere")
    lengths, whole = planned()
    assert len(lengths.new) > 0
    assert whole.generate_flops > 0

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
    _, read = planned()
    assert read.generate_flops == 0
    assert read.feature_flops > 0
    assert read.answer_tokens == stored.answer_tokens
    assert read.fit_flops == pytest.approx(stored.fit_flops)

    _, online = planned("fit.online=true")
    assert online.store_bytes == online.feature_flops == 0
    _, kept = planned("fit.online=true", "fit.hold_gb=1")
    assert online.online_flops == pytest.approx(3 * kept.online_flops, rel=0.2), "epochs"
    lengths, _ = planned("fit.online=true", "generate.temperatures=[0.0, 0.8]", enough + "0")
    assert lengths.sequences == pytest.approx(2 * len(tiny_prompts()), abs=4)


def test_no_stage_is_one_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "name a stage (prepare" in capsys.readouterr().err
