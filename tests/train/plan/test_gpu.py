"""Seconds of a described GPU: against what a real one recorded, and kernels as they are counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sgl_entropy.cli import main
from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.file import Answered
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.plan.counts import count
from sgl_entropy.train.plan.gpu import GPUS, Gpu, fit_kernels, gpu_named, gpu_seconds
from sgl_entropy.train.plan.lengths import Lengths, drawn
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.settings.fit import FitSettings
from tests.train.conftest import tiny_config
from tests.train.fit.test_processes import work_folder
from tests.train.plan.test_counts import settings_of

ROOT = Path(__file__).resolve().parents[3]
# The small target.
MODEL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
# Operators that make no kernel: views, and what only allocates or reads.
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "expand", "permute", "slice", "select", "split"),
    *("split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind"),
    *("empty", "empty_like", "empty_strided", "new_empty", "_local_scalar_dense"),
}


class Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def online(target: PlainTarget, store: Store, taps: tuple[int, ...]) -> OnlineStore:
    answers = [
        Answered(e.prompt_id, e.prompt_length, tuple(store.tokens(e).tolist()))
        for e in store.entries
    ]
    return OnlineStore(target, answers, taps, Path("answers.jsonl"))


@pytest.mark.parametrize("hold_gb", [0.0, 1.0])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("algorithm", "taps"), [("EDSD", (1, 2)), ("EAGLE3", (0, 1, 2))])
def test_kernels_of_a_step_are_as_counted(
    algorithm: Algorithm,
    taps: tuple[int, ...],
    optimizer: str,
    hold_gb: float,
    tiny_target: PlainTarget,
    tiny_store: Store,
    tmp_path: Path,
) -> None:
    config = tiny_config(algorithm, taps)
    for steps in (1, 3):
        given = FitSettings(
            epochs=1,
            steps=(steps,),
            rows=60,
            dtype="bfloat16",
            optimizer=optimizer,
            online=True,
            hold_gb=hold_gb,
            solved_start=False,
            validation_every=8,
        )
        store = online(tiny_target, tiny_store, taps)
        sides = tiny_target.embedding, tiny_target.head
        run = Fit(config, given, store, torch.arange(96), *sides, tmp_path / str(steps))
        batches = run.plan(0)
        run.learn(batches[0], 0, 10)
        with Kernels() as kernels:
            run.learn(batches[1], 0, 10)
        layers = 0 if hold_gb else tiny_target.num_layers
        planned = fit_kernels(config, given, 1, layers)
        assert planned == pytest.approx(kernels.counted.total(), rel=0.05)


def shipped_lengths(sequences: int, answer: float) -> Lengths:
    """As of the shipped drafters' data: prompts up to 1,024 tokens, answers up to 256."""
    chance = random.Random(3)
    pairs = (
        (chance.randint(60, 540), min(256, round(chance.uniform(2, 2 * answer))))
        for _ in range(sequences)
    )
    return Lengths(tuple(drawn(i, prompt, max(2, own)) for i, (prompt, own) in enumerate(pairs)))


@pytest.mark.parametrize(
    ("more", "steps_a_second"),
    [
        # Two drafters side by side.
        ([], 69),
        # Ten, all EDSD but one.
        (["fit.rows=1020", "fit.answer_tokens=300000", "drafter.draft_vocab_size=8192"], 80),
    ],
)
def test_steps_a_second_are_those_of_the_recorded_gpu(
    more: list[str], steps_a_second: float
) -> None:
    """docs/training.md, The shipped pair: trainings beside each other on one H200, together."""
    settings = load_settings(ROOT / "bench" / "drafters" / "train-gpu.toml", more)
    lengths = shipped_lengths(16_384, 205)
    took = steps = 0.0
    pair: list[tuple[Algorithm, tuple[int, ...]]] = [("EDSD", (14, 27)), ("EAGLE3", (2, 15, 27))]
    for algorithm, taps in pair if not more else pair[:1]:
        config = replace(
            tiny_config(algorithm, taps),
            hidden_size=576,
            target_hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            vocab_size=49152,
            draft_vocab_size=settings.drafter.draft_vocab_size,
            fuse_size=1536 if algorithm == "EDSD" else None,
        )
        counts = count(lengths, MODEL, 3, config, settings.fit)
        kernels = fit_kernels(config, settings.fit, counts.optimizer_steps, 0)
        took += gpu_seconds(GPUS["h200"], counts, lengths, MODEL, 1024, kernels).fit
        steps += counts.optimizer_steps
    assert steps / took == pytest.approx(steps_a_second, rel=0.25)
    if not more:
        assert lengths.answer_tokens == pytest.approx(3.04e6, rel=0.05)
        assert took == pytest.approx(60, rel=0.25), "the longer of the two, which took turns"


def test_answers_take_what_the_recorded_gpu_took() -> None:
    """25,000 tokens/s with 1,024 slots (docs/training.md, The shipped pair)."""
    settings = load_settings(ROOT / "bench" / "drafters" / "train-gpu.toml", [])
    lengths = shipped_lengths(16_384, 205)
    counts = count(lengths, MODEL, 3, tiny_config("EDSD", (14, 27)), settings.fit)
    took = gpu_seconds(GPUS["h200"], counts, lengths, MODEL, 1024, 0).generate
    assert lengths.answer_tokens / took == pytest.approx(25_000, rel=0.25)


def test_a_large_drafter_is_bound_by_arithmetic() -> None:
    wide = 4096
    config = replace(
        tiny_config("EDSD", (1, 2)),
        hidden_size=wide,
        target_hidden_size=wide,
        intermediate_size=14336,
        num_attention_heads=32,
        head_dim=128,
        vocab_size=128256,
        draft_vocab_size=32000,
        fuse_size=14336,
    )
    model = {"hidden_size": wide, "intermediate_size": 14336, "num_hidden_layers": 32}
    model |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    fit = FitSettings(rows=8192)
    lengths = shipped_lengths(2000, 150)
    counts = count(lengths, model, 3, config, fit)
    kernels = fit_kernels(config, fit, counts.optimizer_steps, 0)
    seconds = gpu_seconds(GPUS["h100"], counts, lengths, model, 64, kernels).fit
    assert seconds == pytest.approx(counts.fit_flops / (0.35 * 989e12))


def test_muon_costs_its_matmuls() -> None:
    """Fifteen a matrix and step, in float32; one moment instead of two is kept."""
    config = tiny_config("EAGLE3", (0, 1, 2))
    lengths = shipped_lengths(200, 100)
    adamw = FitSettings(rows=400)
    muon = replace(adamw, optimizer="muon")
    held = [count(lengths, MODEL, 3, config, fit) for fit in (adamw, muon)]
    assert held[0].optimizer_flops == 0
    # q [32, 64], k and v [16, 64], o [32, 32], gate and up [48, 32], down [32, 48].
    shapes = [(32, 64), (16, 64), (16, 64), (32, 32), (32, 48), (32, 48), (32, 48)]
    rounds = sum(5 * (4 * short**2 * long + 2 * short**3) for short, long in shapes)
    assert held[1].optimizer_flops == held[1].optimizer_steps * rounds
    one, other = (
        gpu_seconds(GPUS["h100"], replace(counts, fit_flops=1e20), lengths, MODEL, 64, 0).fit
        for counts in (held[0], replace(held[1], optimizer_flops=1e18))
    )
    assert other - one == pytest.approx(1e18 / (0.35 * 67e12), rel=1e-3)


def test_a_plan_says_what_does_not_fit(
    tiny_store: Store,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    words = ["train", "--plan", "--gpu", "rtx4090", "--json", str(tmp_path / "plan.json")]
    for one in settings_of(work, tiny_folder, []):
        words += ["--set", one]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "does not fit" not in printed
    assert "trainings side by side on this GPU take turns" in printed
    assert "22 µs a kernel (ours, from one H200)" in printed
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    online = ["--set", "fit.online=true", "--set", "fit.hold_gb=0.000001"]
    assert main([*words, *online]) == 0
    printed = capsys.readouterr().out
    assert "fit.hold_gb would not hold" in printed
    assert "none: features are computed online" in printed
    monkeypatch.setitem(GPUS, "rtx4090", replace(GPUS["rtx4090"], memory=1e5))
    assert main(words) == 0
    assert "does not fit: fit needs 0.0 GB, the GPU has 0; lower fit.rows" in (
        capsys.readouterr().out
    )
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is False


DESCRIBED = """bfloat16_tflops = 1979
float32_tflops = 134
bandwidth_gb_s = 8_000
memory_gb = 192
"""


def test_a_gpu_can_be_described_in_a_file(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.toml"
    file.write_text(DESCRIBED)
    assert gpu_named(str(file)) == Gpu(1979e12, 8e12, 192e9, 134e12)
    work = work_folder(tmp_path / "work", tiny_store)
    words = ["train", "--plan", "--gpu", str(file)]
    for one in settings_of(work, tiny_folder, []):
        words += ["--set", one]
    assert main(words) == 0
    assert f"on {file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DESCRIBED.replace("192", "0"), "memory_gb must be a number above 0, found 0"),
        (DESCRIBED.replace("192", "nan"), "memory_gb must be a number above 0, found nan"),
        (DESCRIBED.replace("192", "inf"), "memory_gb must be a number above 0, found inf"),
        (DESCRIBED.replace("192", "true"), "memory_gb must be a number above 0, found True"),
        (DESCRIBED.replace("192", "'192'"), "memory_gb must be a number above 0, found '192'"),
        (DESCRIBED.replace("memory_gb = 192\n", ""), "memory_gb must be a number above 0"),
        (DESCRIBED + "cores = 3\n", "unknown key cores"),
        ("bfloat16_tflops = ", "not valid TOML"),
    ],
)
def test_a_gpu_that_is_described_wrongly_is_refused(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "gpu.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=why):
        gpu_named(str(file))
