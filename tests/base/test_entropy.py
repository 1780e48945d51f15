"""Entropy in the regimes that break it: saturated rows, ruled-out tokens, large vocabularies."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_entropy import entropy as module
from sgl_entropy.entropy import entropy_of_rows, shannon_entropy


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


LONG = 32_000


def hostile(vocab: int) -> torch.Tensor:
    """Rows in the regimes where the shift, the powers or a product with zero might break."""
    torch.manual_seed(3)
    rows = torch.randn(12, vocab) * 4
    rows[1] = 0.0
    rows[2] *= 300.0
    rows[3, 100:] = -math.inf
    rows[4] = -math.inf
    rows[4, 7] = 5.0
    rows[5] = -math.inf
    rows[6, 9] = math.nan
    rows[7, 9] = math.inf
    rows[8] += 1e6
    rows[9, :2] = torch.tensor([1e30, 2e30])
    rows[10] -= 3e38
    rows[11] = -1e30
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_have_the_entropy_of_the_plain_way(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one in buffers, where only what is not finite goes the plain way."""
    rows = hostile(LONG).to(dtype)
    plain = torch.stack([module._entropy(row) for row in rows])
    went = []
    way = module._entropy

    def counted(logits: torch.Tensor) -> torch.Tensor:
        went.append(len(logits))
        return way(logits)

    monkeypatch.setattr(module, "_entropy", counted)
    found = shannon_entropy(rows.view(3, 4, LONG))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), plain, rtol=2e-6, atol=2e-6, equal_nan=True)
    assert 0 < len(went) < 9
    torch.testing.assert_close(
        entropy_of_rows(rows, [10, 2, 2]), plain[[10, 2, 2]], rtol=2e-6, atol=2e-6
    )
    # A row's entropy never depends on those beside it.
    assert torch.equal(entropy_of_rows(rows, [2]), found.flatten()[2:3])


def test_rows_of_any_length() -> None:
    short = torch.randn(4, 50)
    assert torch.equal(entropy_of_rows(short, [3, 1]), shannon_entropy(short)[[3, 1]])
    wide = torch.randn(2, LONG, dtype=torch.float64)
    assert entropy_of_rows(wide, [1]).dtype == torch.float64
    # The way in buffers has no gradient, so it is not taken where one is asked for.
    leaf = torch.randn(2, LONG, requires_grad=True)
    shannon_entropy(leaf).sum().backward()
    assert leaf.grad is not None
