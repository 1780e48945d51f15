"""The rows that an idle drafter has not read yet, kept with the requests that they belong to.

Row t of a drafter's input is the target's feature of token t beside token t + 1. While one of two
drafters drafts, each verification adds its emitted rows here; the other reads them in one forward
when its turn comes. The rows of a request are always its newest, so their number and the length
of the sequence say which KV slots they belong to. They leave with the request. One that is
retracted is prefilled anew, after which it has missed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.serving.attached import request_state

# In one batch; with more the idle drafter catches up without a switch. Bounds the memory of the
# features (24 KB a row for an 8B target) and how long a switch can last.
MOST_ROWS = 2048


@dataclass(frozen=True)
class MissedRows:
    """Missed rows of several requests, one request after the other.

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
        request_state(req).missed = []


def add(reqs: Sequence[Any], counts: Sequence[int], ids: Tensor, features: Tensor) -> None:
    """Add what one verification emitted, row by row.

    Args:
        counts: rows of each request.
        ids: [sum of counts]; features: [sum of counts, tap width].
    """
    sizes = list(counts)
    split = zip(reqs, ids.split(sizes), features.split(sizes), strict=True)
    for req, tokens, states in split:
        request_state(req).missed.append((tokens, states))


def keep_newest(reqs: Sequence[Any]) -> None:
    """Drop all but the last verification's rows: what the drafter that has just drafted misses."""
    for req in reqs:
        state = request_state(req)
        state.missed = state.missed[-1:]


def count(req: Any) -> int:
    """How many rows of a request are missed."""
    return sum(len(ids) for ids, _ in request_state(req).missed)


def gather(reqs: Sequence[Any]) -> MissedRows:
    """All missed rows of these requests, which must miss at least one each."""
    parts = [part for req in reqs for part in request_state(req).missed]
    return MissedRows(
        [count(req) for req in reqs],
        torch.cat([ids for ids, _ in parts]).long(),
        torch.cat([features for _, features in parts]),
    )
