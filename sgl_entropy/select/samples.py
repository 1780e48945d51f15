"""The calibration texts as tokens: a seeded sample of files, and noisy views of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.texts import read_texts
from sgl_entropy.select.noise import noisy_view

DEFAULT_COUNT = 128
MIN_COUNT = 8
# Two steps make a turn, and the first token of a text is often one that the tokenizer put there.
MIN_TOKENS = 4
# Longer than the average token of any vocabulary: what follows in a text need not be tokenized.
_CHARACTERS_A_TOKEN = 12


@dataclass(frozen=True)
class CalibrationSample:
    """Texts to measure with.

    Attributes:
        texts: cut to what can become tokens.
        ids: of each text, special tokens of the tokenizer included, cut to a length.
        short: texts that were left out because they have fewer than ``MIN_TOKENS`` tokens.
        sha256: of the files' bytes, one after the other.
    """

    texts: list[str]
    ids: list[list[int]]
    short: int
    sha256: str


def sample_texts(
    files: Sequence[Path],
    tokenizer: Any,
    count: int | None,
    max_tokens: int,
    seed: int,
    report: Callable[[str], None],
) -> CalibrationSample:
    """A seeded sample of the files' texts; of a conversation, its first question and answer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        count: texts wanted; None = ``DEFAULT_COUNT``, or all usable ones with one warning line.
        max_tokens: longer texts are cut.

    Raises:
        ValueError: not readable as texts, or too few usable ones.
    """
    # JSON may hold half a surrogate pair, which no tokenizer takes.
    texts = [
        text.whole.encode("utf-8", "replace").decode()
        for file in files
        for text in read_texts(file)
    ]
    random.Random(seed).shuffle(texts)
    wanted = DEFAULT_COUNT if count is None else count
    kept: list[str] = []
    ids: list[list[int]] = []
    short = 0
    for text in texts:
        if len(kept) == wanted:
            break
        text = text[: max_tokens * _CHARACTERS_A_TOKEN]
        tokens = encode(tokenizer, text, max_tokens)
        if len(tokens) < MIN_TOKENS:
            short += 1
            continue
        kept.append(text)
        ids.append(tokens)
    usable = (
        f"--texts {' '.join(map(str, files))}: {len(kept)} usable texts of {len(texts)} "
        f"({short} under {MIN_TOKENS} tokens)"
    )
    if len(kept) < MIN_COUNT:
        raise ValueError(f"{usable}; at least {MIN_COUNT} are needed")
    if len(kept) < wanted and count is not None:
        raise ValueError(f"{usable}, but --count asks for {count}")
    if len(kept) < wanted:
        report(f"warning: {usable} instead of the usual {DEFAULT_COUNT}: profiles are less sure")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return CalibrationSample(kept, ids, short, digest.hexdigest())


def noisy_ids(
    tokenizer: Any, texts: list[str], views: int, max_tokens: int, seed: int, rate: float
) -> list[list[list[int]]]:
    """``views`` noisy views of each text as tokens, [text][view][token]."""
    # More than the first few words of a long text would be cut off again.
    heads = [text[: max_tokens * _CHARACTERS_A_TOKEN] for text in texts]
    return [
        [encode(tokenizer, noisy_view(text, view, seed, rate), max_tokens) for view in range(views)]
        for text in heads
    ]


def encode(tokenizer: Any, text: str, max_tokens: int) -> list[int]:
    """The first ``max_tokens`` token ids, as the tokenizer makes them by default."""
    return list(tokenizer(text).input_ids)[:max_tokens]
