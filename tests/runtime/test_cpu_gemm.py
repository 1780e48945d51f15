"""Packed weights against the plain product, for every number of rows around the limits."""

from __future__ import annotations

import pytest
import torch

from sgl_entropy.runtime.v0_5_6.cpu import gemm


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(48, 80).requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 40, 95, 96, 97, 300])
def test_equal_to_the_plain_product(rows: int) -> None:
    linear, x = layer(), torch.randn(rows, 48)
    assert gemm.serves(linear), "the packed path is not on: nothing is tested"
    expected = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    found = gemm.linear(linear, x, linear.bias)
    assert found.shape == (rows, 80)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gemm.linear(linear, x).double(), expected - linear.bias, rtol=1e-5, atol=1e-5
    )


def test_more_dimensions_and_no_rows() -> None:
    linear = layer()
    assert gemm.linear(linear, torch.randn(3, 4, 48)).shape == (3, 4, 80)
    assert gemm.linear(linear, torch.randn(0, 48)).shape == (0, 80)


@pytest.mark.parametrize("change", ["write", "replace"])
def test_a_changed_weight_is_packed_anew(change: str) -> None:
    linear, x = layer(), torch.randn(3, 48)
    gemm.linear(linear, x)
    if change == "write":
        linear.weight.mul_(2.0)
    else:
        linear.weight = torch.nn.Parameter(torch.randn(80, 48), requires_grad=False)
    expected = torch.nn.functional.linear(x, linear.weight)
    torch.testing.assert_close(gemm.linear(linear, x), expected, rtol=1e-5, atol=1e-5)


def test_a_weight_written_under_inference_mode_is_packed_anew() -> None:
    """Such tensors do not count what is written to them, as SGLang's weights."""
    with torch.inference_mode():
        linear, x = layer(), torch.randn(3, 48)
        before = gemm.linear(linear, x).clone()
        linear.weight.mul_(2.0)
        gemm.weights_changed()
        torch.testing.assert_close(gemm.linear(linear, x), 2 * before, rtol=1e-5, atol=1e-5)
