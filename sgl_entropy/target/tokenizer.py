"""The target's tokenizer, refused where it knows tokens that the target has no embedding for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgl_entropy.base.json_file import read_object


def load_tokenizer(folder: Path, embedding_rows: int) -> Any:
    """The target's tokenizer.

    Raises:
        ValueError: none there, or one that knows more tokens than the target has embeddings.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise ValueError(f"{folder}: no tokenizer there (looked for {', '.join(names)})")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    highest = max(tokenizer.get_vocab().values())
    if highest >= embedding_rows:
        raise ValueError(
            f"{folder}: its tokenizer's vocabulary goes up to token {highest:,}, but the target "
            f"embeds {embedding_rows:,} tokens: they do not belong together"
        )
    return tokenizer


def chat_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or of a hub id, with its chat template.

    Raises:
        ValueError: it has no chat template, or does not fit the model whose config lies beside it.
    """
    from transformers import AutoTokenizer

    rows = _embedding_rows(folder)
    tokenizer = (
        AutoTokenizer.from_pretrained(folder) if rows is None else load_tokenizer(folder, rows)
    )
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: its tokenizer has no chat template to put prompts into")
    return tokenizer


def _embedding_rows(folder: Path) -> int | None:
    """Rows of the embedding of the folder's model; None where a tokenizer lies there alone."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_object(path, limit=1 << 24)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size", config.get("vocab_size"))
    return size if type(size) is int else None
