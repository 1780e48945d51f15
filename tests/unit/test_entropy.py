"""Entropy in the regimes that break it: saturated rows, ruled-out tokens, large vocabularies."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_entropy.entropy import shannon_entropy


def exact(logits: torch.Tensor) -> torch.Tensor:
    """In float64, over the tokens that are not ruled out."""
    rows = []
    for row in logits.double().reshape(-1, logits.shape[-1]):
        p = torch.softmax(row, -1)
        p = p[p > 0]
        rows.append(-(p * p.log()).sum())
    return torch.stack(rows).reshape(logits.shape[:-1])


@pytest.mark.parametrize("vocab", [2, 33, 49_152, 151_936])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0, 300.0])
def test_it_is_the_entropy(vocab: int, scale: float) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(3, vocab) * scale
    # Sums of 1.5e5 terms in float32: a few units in the sixth digit.
    torch.testing.assert_close(
        shannon_entropy(logits).double(), exact(logits), rtol=2e-5, atol=2e-5
    )


def test_bounds_and_shape() -> None:
    flat = shannon_entropy(torch.zeros(2, 5, 1000))
    torch.testing.assert_close(flat, torch.full((2, 5), math.log(1000)))
    one = torch.full((4,), -math.inf)
    one[2] = -1e4
    assert shannon_entropy(one).item() == 0.0
    assert shannon_entropy(torch.tensor([0.0, 1e30])).item() == 0.0
    assert shannon_entropy(torch.randn(6, dtype=torch.float64)).dtype == torch.float64
    assert shannon_entropy(torch.randn(6).to(torch.bfloat16)).dtype == torch.float32


def test_ruled_out_tokens_do_not_count() -> None:
    logits = torch.randn(7, 50)
    ruled = torch.cat([logits, torch.full((7, 30), -math.inf)], dim=-1)
    torch.testing.assert_close(shannon_entropy(ruled), shannon_entropy(logits))


def test_no_distribution_has_no_entropy() -> None:
    assert shannon_entropy(torch.full((3,), -math.inf)).isnan()
    assert shannon_entropy(torch.tensor([0.0, math.nan, 1.0])).isnan()
