"""The figure of entropy's cost: what is timed is what its columns say."""

from __future__ import annotations

import torch

from sgl_entropy.figures import entropy_cost


def test_each_way_is_timed_by_vocabulary_and_rows() -> None:
    data = entropy_cost.measure(tries=3, vocabularies=(64, 300), rows=(1, 4))
    assert [(case["vocabulary"], case["rows"]) for case in data["cases"]] == [
        (64, 1),
        (64, 4),
        (300, 1),
        (300, 4),
    ]
    for case in data["cases"]:
        assert list(case["ways"]) == ["softmax", "entropy", "top-10", "both"]
        assert case["ways"]["softmax"]["over_softmax"] == 1.0
        for way in case["ways"].values():
            low, high = way["quartiles_ms"]
            assert 0 < low <= way["median_ms"] <= high
    assert "| 300 | 4 | " in entropy_cost.page(data)


def test_both_is_what_the_two_compute() -> None:
    logits = torch.randn(3, 50)
    both = entropy_cost.WAYS["both"](logits)
    assert torch.equal(both.entropy, entropy_cost.WAYS["entropy"](logits))
    assert torch.equal(both.top_ids, entropy_cost.WAYS["top-10"](logits).indices)
