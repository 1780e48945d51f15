"""Deciles, heat map and bootstrap, each against something that would notice a slip."""

from __future__ import annotations

import pytest
import torch

from sgl_entropy.evaluate.uncertainty import FirstDrafts, by_decile, heat_map, ratio_interval
from sgl_entropy.verify.trace import CycleRecord


def test_deciles_sort_and_split() -> None:
    entropy = torch.tensor([3.0, 0.0, 2.0, 1.0])
    accepted = torch.tensor([False, True, False, True])
    assert by_decile(entropy, accepted, 2) == [
        {"entropy": [0.0, 1.0], "positions": 2, "acceptance": 1.0},
        {"entropy": [2.0, 3.0], "positions": 2, "acceptance": 0.0},
    ]
    assert len(by_decile(entropy, accepted, 10)) == 4
    assert by_decile(entropy[:0], accepted[:0]) == []


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
    assert found["positions"] == [[2, 0, 4], [0, 0, 0], [0, 0, 2]]
    assert found["accepted"] == [[2, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_intervals_hold_the_ratio_and_narrow_with_prompts() -> None:
    low, high = ratio_interval([10, 30, 20, 40], [10, 10, 10, 10])
    assert 1.0 < low < 2.5 < high < 4.0
    narrow = ratio_interval([10, 30, 20, 40] * 25, [10] * 100)
    assert narrow[1] - narrow[0] < 0.35 * (high - low)
    assert ratio_interval([10, 30], [5, 15]) == (2.0, 2.0)
    assert ratio_interval([10, 30], [5, 15]) == ratio_interval([10, 30], [5, 15])


def test_the_ratio_is_pooled_not_a_mean_of_ratios() -> None:
    low, high = ratio_interval([1, 900], [1, 300])
    assert low == 1.0
    assert high == 3.0
    many = ratio_interval([1] * 50 + [900] * 50, [1] * 50 + [300] * 50)
    assert many[0] > 2.95, "long answers weigh more"


def test_prompts_without_a_cycle() -> None:
    assert ratio_interval([0, 10], [0, 5]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="no draft-verify cycle"):
        ratio_interval([0], [0])
