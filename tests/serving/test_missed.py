"""Rows that the idle drafter has not seen: kept by request, whatever happens to the batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.serving import missed

WIDTH = 3


def requests(count: int) -> list[Any]:
    reqs = [SimpleNamespace() for _ in range(count)]
    missed.forget(reqs)
    return reqs


def cycle(reqs: list[Any], counts: list[int], start: int) -> None:
    """Rows whose ids count up from ``start`` and whose features repeat the id."""
    ids = torch.arange(start, start + sum(counts), dtype=torch.int32)
    missed.add(reqs, counts, ids, ids[:, None].expand(-1, WIDTH).float())


def test_rows_of_a_request_stay_together_in_their_order() -> None:
    reqs = requests(2)
    cycle(reqs, [2, 1], 0)
    cycle(reqs, [1, 3], 10)
    rows = missed.gather(reqs)
    assert rows.counts == [3, 4]
    assert rows.ids.tolist() == [0, 1, 10, 2, 11, 12, 13]
    assert rows.ids.dtype == torch.int64
    assert rows.features.tolist() == [[float(i)] * WIDTH for i in rows.ids.tolist()]


def test_batches_that_merge_may_have_missed_different_lengths() -> None:
    old, new = requests(2), requests(1)
    cycle(old, [1, 2], 0)
    cycle([*old, *new], [1, 1, 4], 10)
    assert [missed.count(req) for req in (*old, *new)] == [2, 3, 4]
    assert missed.gather([*new, old[0]]).ids.tolist() == [12, 13, 14, 15, 0, 10]


def test_requests_that_leave_take_their_rows_along() -> None:
    reqs = requests(3)
    cycle(reqs, [1, 2, 1], 0)
    stays = [reqs[0], reqs[2]]
    cycle(stays, [1, 1], 10)
    assert missed.gather(stays).ids.tolist() == [0, 10, 3, 11]


def test_a_request_that_is_prefilled_anew_has_missed_nothing() -> None:
    """After retraction: its prompt's forward, which both drafters follow, starts it again."""
    reqs = requests(2)
    cycle(reqs, [3, 2], 0)
    missed.forget(reqs[:1])
    assert [missed.count(req) for req in reqs] == [0, 2]


def test_after_a_switch_the_other_has_missed_the_last_cycle_alone() -> None:
    reqs = requests(2)
    cycle(reqs, [2, 2], 0)
    cycle(reqs, [1, 3], 10)
    missed.keep_newest(reqs)
    rows = missed.gather(reqs)
    assert (rows.counts, rows.ids.tolist()) == ([1, 3], [10, 11, 12, 13])
    fresh = requests(1)
    missed.keep_newest(fresh)
    assert missed.count(fresh[0]) == 0


def test_rows_that_do_not_add_up_are_no_rows() -> None:
    with pytest.raises(RuntimeError):
        missed.add(requests(2), [1, 1], torch.zeros(3), torch.zeros(3, WIDTH))
