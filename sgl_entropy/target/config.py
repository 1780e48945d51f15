"""What a drafter must know of its target, read from the target's folder; no transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.base.json_file import JsonFileError, read_object
from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.raw_config import default, is_int, is_number, show

_TOKENIZER_LIMIT = 1 << 28


@dataclass(frozen=True)
class TargetConfig:
    """Sizes of the target. ``max_position_embeddings`` is the context it was made for."""

    folder: Path
    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None

    @classmethod
    def from_folder(cls, folder: str | Path) -> TargetConfig:
        """Read ``config.json``; multimodal models keep the text model's in ``text_config``.

        Raises:
            DrafterError: no such folder, no JSON object, or sizes missing or impossible.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DrafterError(
                f"target {folder}: no such folder; a target is a local Hugging Face folder "
                "(download a model from a hub first)"
            )
        path = folder / "config.json"
        try:
            raw = read_target_config(folder)
        except JsonFileError as error:
            raise DrafterError(f"target: {error}") from None
        text = raw.get("text_config")
        if isinstance(text, dict):
            raw = raw | text
        wrong = []
        sizes: dict[str, Any] = {}
        for key in ("hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"):
            value = raw.get(key)
            sizes[key] = value
            if not is_int(value) or not 1 <= value < 1 << 31:  # type: ignore[operator]
                wrong.append(f"{key} must be a positive integer, found {show(value)}")
        newer = raw.get("rope_parameters")
        rope = newer if isinstance(newer, dict) else {}
        theta = default(raw, "rope_theta", default(rope, "rope_theta", 10000.0))
        if not is_number(theta):
            wrong.append(f"rope_theta must be a finite number, found {show(theta)}")
        if wrong:
            raise DrafterError(f"target {path}: {'; '.join(wrong)}")
        scaling = default(raw, "rope_scaling", rope or None)
        return cls(folder=folder, rope_theta=float(theta), rope_scaling=scaling, **sizes)


def read_target_config(folder: Path) -> dict[str, Any]:
    """The target's ``config.json`` as it is.

    Raises:
        JsonFileError: not there, or no JSON object.
    """
    return read_object(folder / "config.json", limit=1 << 24)


def end_tokens(folder: str | Path) -> list[int]:
    """Ids that end an answer, sorted: those of ``config.json`` and of ``generation_config.json``
    together, as SGLang takes them.

    Raises:
        DrafterError: a file that cannot be read.
    """
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            given = read_object(path, limit=1 << 24).get("eos_token_id")
        except JsonFileError as error:
            raise DrafterError(f"target: {error}") from None
        several = given if isinstance(given, list) else [given]
        ends |= {int(one) for one in several if isinstance(one, int)}
    return sorted(ends)


def tokenizer_digest(folder: str | Path) -> str | None:
    """A digest of the folder's token-to-id map; None where no tokenizer is shipped.

    Two tokenizers with equal vocabularies have equal digests, however their files are written;
    merges, normalisers and templates do not count.

    Raises:
        DrafterError: a tokenizer.json that cannot be read.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            vocabulary = _vocabulary(read_object(path, limit=_TOKENIZER_LIMIT))
        except JsonFileError as error:
            raise DrafterError(str(error)) from None
        if vocabulary is None:
            raise DrafterError(f"{path}: no vocabulary in it that is known here")
        pairs = sorted(vocabulary.items())
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    sentencepiece = folder / "tokenizer.model"
    if sentencepiece.is_file():
        return file_sha256(sentencepiece)
    return None


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int] | None:
    model = tokenizer.get("model")
    raw = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(raw, dict):  # BPE, WordPiece, WordLevel
        out = {str(token): int(number) for token, number in raw.items() if is_int(number)}
    elif isinstance(raw, list):  # Unigram: [token, score], the id is the place
        out = {str(pair[0]): i for i, pair in enumerate(raw) if isinstance(pair, list) and pair}
    else:
        return None
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and is_int(token.get("id")):
            out[str(token.get("content"))] = token["id"]
    return out
