"""Deciles and heat map, each against something that would notice a slip."""

from __future__ import annotations

import torch

from sgl_entropy.evaluate.uncertainty import EntropyPart, FirstDrafts, by_decile, heat_map
from sgl_entropy.verify.trace import CycleRecord


def test_deciles_sort_and_split() -> None:
    entropy = torch.tensor([3.0, 0.0, 2.0, 1.0])
    accepted = torch.tensor([False, True, False, True])
    assert by_decile(entropy, accepted, 2) == (
        EntropyPart((0.0, 1.0), 2, 1.0),
        EntropyPart((2.0, 3.0), 2, 0.0),
    )
    assert len(by_decile(entropy, accepted, 10)) == 4
    assert by_decile(entropy[:0], accepted[:0]) == ()


def test_first_drafts_of_traces() -> None:
    """A cycle that verified nothing has none; one that ended its request within the draft has."""
    one = CycleRecord((0.5, 2.0), (0.9, 0.4), (1.0, 1.0), (0.9, 0.1), (0.25, 1.0, 3.0), 1, 2)
    none = CycleRecord((), (), (), (), (7.0,), 0, 1)
    wrong = CycleRecord((1.5,), (0.4,), (0.2,), (0.1,), (2.5, 1.0), 0, 1)
    ended = CycleRecord((0.125,), (0.4,), (0.2,), (0.1,), (0.75, 1.0), 1, 1)
    found = FirstDrafts.of([one, none, wrong, ended])
    assert found.target_entropy.tolist() == [0.25, 2.5, 0.75]
    assert found.draft_entropy.tolist() == [0.5, 1.5, 0.125]
    assert found.accepted.tolist() == [True, False, True]
    assert len(FirstDrafts.joined([found, FirstDrafts.of([])]).accepted) == 3


def test_heat_map_counts_every_position_once() -> None:
    drafts = FirstDrafts(
        torch.tensor([0.0, 0.9, 0.9, 99.0]),
        torch.tensor([0.4, 2.1, 2.2, 99.0]),
        torch.tensor([True, True, False, False]),
    )
    found = heat_map(FirstDrafts.joined([drafts, drafts]), width=1.0, cells=3)
    assert found.positions == ((2, 0, 4), (0, 0, 0), (0, 0, 2))
    assert found.accepted == ((2, 0, 2), (0, 0, 0), (0, 0, 0))
