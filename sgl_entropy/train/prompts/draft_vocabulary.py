"""The draft vocabulary: which target tokens a drafter can propose."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor


def count_tokens(pieces: Iterable[Tensor], vocab_size: int) -> Tensor:
    """How often each token occurs: float64 [vocab_size]."""
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    waiting = iter(pieces)
    # A few thousand pieces at a time: counting the whole vocabulary for each would take minutes.
    while some := list(itertools.islice(waiting, 4096)):
        tokens = torch.cat([piece.reshape(-1).long() for piece in some])
        counts += torch.bincount(tokens, minlength=vocab_size)
    return counts


def draft_vocabulary(
    answers: Tensor, other: Tensor, size: int, other_weight: float, always: Iterable[int] = ()
) -> Tensor:
    """The ``size`` most frequent tokens, sorted by id (SPEC, EDTrain); d2t is token - index.

    The target's answers alone rank rare tokens by luck (a name seen twice). Text of the same kind
    that need not be generated, with a small weight, ranks them better (ours).

    Args:
        answers, other: counts [vocab]. All of ``other`` together weighs ``other_weight`` times as
            much as all of ``answers``, however long either text is.
        always: ids that are included whatever their counts (ends of an answer).

    Returns:
        int64 [size], rising.

    Raises:
        ValueError: ``size`` exceeds the vocabulary.
    """
    if not 0 < size <= len(answers):
        raise ValueError(f"draft vocabulary must be 1..{len(answers)} tokens, found {size}")
    score = answers / max(1.0, float(answers.sum()))
    score = score + other_weight * other / max(1.0, float(other.sum()))
    score[list(always)] = float("inf")
    # Equal scores: the lower id, which BPE learned earlier and is the more common token.
    order = torch.argsort(score, descending=True, stable=True)
    return order[:size].sort().values
