"""A tiny random llama target with a store generated from it: the trainer's tests share them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.evaluate.walk import greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.generate import WorkerPlan, run_worker
from sgl_entropy.train.samples.store import Store, StoreMeta, write_meta
from sgl_entropy.train.samples.workers import size_line

TAPS = (0, 1, 2)
VOCAB = 160


def tiny_prompts(count: int = 24) -> list[Prompt]:
    """Prompts of 3 to 11 tokens, seeded."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 12, (count,), generator=chance).tolist()
    return [
        Prompt(i, tuple(torch.randint(3, VOCAB, (n,), generator=chance).tolist()))
        for i, n in enumerate(lengths)
    ]


def tiny_config(algorithm: str, layers: tuple[int, ...]) -> DrafterConfig:
    """A drafter for the tiny target."""
    return DrafterConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB,
        draft_vocab_size=96,
        target_hidden_size=32,
        target_layer_ids=layers,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        max_position_embeddings=128,
        fuse_size=48 if algorithm == "EDSD" else None,
    )


def _sometimes_written(target: PlainTarget) -> int:
    answers = greedy_answers(target, [p.tokens for p in tiny_prompts()], 20, ())
    written = [set(a.tokens[a.prompt_length + 2 :].tolist()) for a in answers]
    counts = {token: sum(token in w for w in written) for token in range(3, VOCAB)}
    return max((token for token, n in counts.items() if n <= 8), key=lambda token: counts[token])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a stage run one after the other in this process: starting others takes
    seconds. (``test_workers`` and ``test_generate`` start real ones.)"""

    def run_here(
        run: Callable[[Any], None],
        plans: Sequence[Any],
        folder: Path,
        stored: int,
        wanted: int,
        report: Callable[[str], None],
    ) -> None:
        for plan in plans:
            run(plan)
        report(size_line(Store(folder)))

    monkeypatch.setattr("sgl_entropy.train.stages.data.run_processes", run_here)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama target as a Hugging Face folder, float32, grouped heads, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("tiny-target")
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    # The end token is one that some answers, not all, write by themselves.
    model.config.eos_token_id = _sometimes_written(PlainTarget.from_folder(folder))
    model.generation_config.eos_token_id = model.config.eos_token_id
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_target(tiny_folder: Path) -> PlainTarget:
    return PlainTarget.from_folder(tiny_folder)


@pytest.fixture(scope="session")
def tiny_store(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 greedy answers of at most 20 tokens, with three taps."""
    folder = tmp_path_factory.mktemp("store")
    write_meta(folder, StoreMeta(TAPS, 32))
    run_worker(
        WorkerPlan(
            number=0,
            target=str(tiny_folder),
            store=str(folder),
            prompts=tuple(tiny_prompts()),
            tap_layers=TAPS,
            max_new_tokens=20,
            slots=5,
            answer_tokens=10_000,
            dtype="float32",
        )
    )
    assert (folder / "generate.jsonl").is_file()
    assert json.loads((folder / "meta.json").read_text())["hidden_size"] == 32
    return Store(folder)
