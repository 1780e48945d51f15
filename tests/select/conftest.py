"""A tiny random llama with a byte-level tokenizer, and a file of texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.target.plain import PlainTarget

LINE = "when the small red house near a river burns we write about water and light"


def write_target(folder: Path, vocab: int = 260, **sizes: Any) -> Path:
    """Weights and config of a random llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    given = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    config = LlamaConfig(
        vocab_size=vocab, tie_word_embeddings=True, initializer_range=0.3, **{**given, **sizes}
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A token a byte: 256 of them, and an end token that texts never hold."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: i for i, letter in enumerate(letters, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def command(target_folder: Path, texts: Path, *words: str) -> int:
    """``select`` with few views and resamples."""
    quick = ("--views", "2", "--resamples", "10", "--lidar-resamples", "2", "--view-tokens", "8")
    return main(["select", str(target_folder), "--texts", str(texts), *quick, *words])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_target(tmp_path_factory.mktemp("select-target"))
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def target(target_folder: Path) -> PlainTarget:
    return PlainTarget.from_folder(target_folder)


@pytest.fixture
def texts_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes ``count`` different rows of the given form."""

    def write(count: int = 12, form: str = "question") -> Path:
        texts = [" ".join(LINE.split()[i % 5 : 5 + i % 7]) + f" {i}" for i in range(count)]
        path = tmp_path / "texts.jsonl"
        path.write_text("".join(json.dumps({form: text}) + "\n" for text in texts))
        return path

    return write
