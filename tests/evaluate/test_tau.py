"""The bootstrap of a pooled tau, against something that would notice a slip."""

from __future__ import annotations

import pytest

from sgl_entropy.evaluate.tau import PromptCounts, pooled_interval


def ratio_interval(tokens: list[int], cycles: list[int]) -> tuple[float, float]:
    return pooled_interval([PromptCounts("", *one) for one in zip(tokens, cycles, strict=True)])


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
