"""The rows that an idle drafter has not seen yet, kept at the requests they belong to.

Row t of a drafter's input is the target's feature of token t beside token t + 1. While one of two
drafters drafts, each verification adds its emitted rows here; the other reads them in one forward
when its turn comes. The rows of a request are always its newest, so their number and the length
of the sequence say which KV slots they belong to. They go with the request: one that is retracted
is prefilled anew, which starts it from nothing missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# On SGLang's Req: (ids [n], features [n, w]) of one cycle each, oldest first.
_ROWS = "sgl_entropy_missed"

# In one batch; at more the idle drafter catches up without a switch. Bounds what the features
# take (of an 8B target 24 KB a row) and how long a switch can last.
MOST_ROWS = 2048


@dataclass(frozen=True)
class MissedRows:
    """Missed rows of several requests, one request behind the other.

    Attributes:
        counts: rows of each request.
        ids: int64 [sum of counts]; features: [sum of counts, tap width].
    """

    counts: list[int]
    ids: Tensor
    features: Tensor


def forget(reqs: Sequence[Any]) -> None:
    """Both drafters have seen everything: after a prompt, and after catching up."""
    for req in reqs:
        setattr(req, _ROWS, [])


def add(reqs: Sequence[Any], counts: Sequence[int], ids: Tensor, features: Tensor) -> None:
    """What one verification emitted, row by row.

    Args:
        counts: rows of each request.
        ids: [sum of counts]; features: [sum of counts, tap width].
    """
    sizes = list(counts)
    split = zip(reqs, ids.split(sizes), features.split(sizes), strict=True)
    for req, tokens, states in split:
        getattr(req, _ROWS).append((tokens, states))


def keep_newest(reqs: Sequence[Any]) -> None:
    """Drop all but the last verification's rows: what the drafter that has just drafted misses."""
    for req in reqs:
        setattr(req, _ROWS, getattr(req, _ROWS)[-1:])


def count(req: Any) -> int:
    """How many rows of a request are missed."""
    return sum(len(ids) for ids, _ in getattr(req, _ROWS))


def gather(reqs: Sequence[Any]) -> MissedRows:
    """All missed rows of these requests, which must miss at least one each."""
    held = [rows for req in reqs for rows in getattr(req, _ROWS)]
    return MissedRows(
        [count(req) for req in reqs],
        torch.cat([ids for ids, _ in held]).long(),
        torch.cat([features for _, features in held]),
    )
