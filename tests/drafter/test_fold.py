"""Folding the norm gives the plain computation, to the rounding of the dtype at hand."""

from __future__ import annotations

import pytest
import torch

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.drafter.fold import (
    fold_embedding_norm,
    inverse_rms_table,
    plan_up_table,
    up_table,
    up_table_bytes,
)

V, D, M, EPS = 50, 48, 40, 1e-6


def plain_up(
    up: torch.Tensor, gamma: torch.Tensor, embedding: torch.Tensor, eps: float
) -> torch.Tensor:
    """up(RMSNorm_emb(e)), SPEC section 1, in the inputs' dtype."""
    rms = embedding.square().mean(dim=-1, keepdim=True).add(eps).sqrt()
    return (gamma * embedding / rms) @ up.T


def weights(dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    up, gamma, embedding = draw(M, D), draw(D), draw(V, D)
    embedding[0] = 0  # padding rows are zero in many models
    embedding[1] *= 1e-4  # eps matters here
    embedding[2] *= 3e3
    gamma[0] = 0
    return up, gamma, embedding


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # 48 products a sum: a few ulp. float64 keeps its sums but reads the float32 table.
    [(torch.float32, 2e-6), (torch.float64, 1e-7)],
    ids=["float32", "float64"],
)
def test_folded_equals_plain(dtype: torch.dtype, tolerance: float) -> None:
    up, gamma, embedding = weights(dtype)
    expected = plain_up(up.double(), gamma.double(), embedding.double(), EPS)
    folded = fold_embedding_norm(up, gamma)
    assert folded.dtype == dtype
    found = inverse_rms_table(embedding, EPS).to(dtype)[:, None] * (embedding @ folded.T)
    scale = expected.abs().amax()
    assert (found.double() - expected).abs().amax() <= tolerance * scale
    assert (found[0] == 0).all(), "a zero embedding gives zero, not NaN"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_gamma_folds_without_any_rounding(dtype: torch.dtype) -> None:
    up, gamma, _ = weights(dtype)
    folded = fold_embedding_norm(up, gamma)
    assert folded.dtype == torch.float32
    assert torch.equal(folded.double(), up.double() * gamma.double())


def test_bfloat16_folded_is_no_worse_than_bfloat16_plain() -> None:
    up, gamma, embedding = weights(torch.bfloat16)
    exact = plain_up(up.double(), gamma.double(), embedding.double(), EPS)
    table = inverse_rms_table(embedding, EPS)[:, None]
    served = (table * (embedding @ fold_embedding_norm(up, gamma).bfloat16().T).float()).double()
    plain = plain_up(up, gamma, embedding, EPS).double()
    assert (served - exact).norm() <= 1.2 * (plain - exact).norm()


def test_the_table_is_one_float32_a_token() -> None:
    _, _, embedding = weights(torch.bfloat16)
    table = inverse_rms_table(embedding, EPS)
    assert (table.shape, table.dtype) == ((V,), torch.float32)
    expected = embedding.double().square().mean(-1).add(EPS).rsqrt()
    torch.testing.assert_close(table.double(), expected, rtol=1e-6, atol=0)
    assert table[0] == pytest.approx(EPS**-0.5)


def test_the_table_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, embedding = weights(torch.float32)
    whole = inverse_rms_table(embedding, EPS)
    monkeypatch.setattr("sgl_entropy.drafter.fold._CHUNK_ROWS", 7)
    assert torch.equal(inverse_rms_table(embedding, EPS), whole)


@pytest.mark.parametrize("chunk", [7, 8192])
def test_up_table_holds_the_draft_vocabulary(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("sgl_entropy.drafter.fold._CHUNK_ROWS", chunk)
    up, gamma, embedding = weights(torch.float32)
    ids = torch.tensor([0, 1, 2, 3, 8, 20, 21, 30, 49])
    table = up_table(
        fold_embedding_norm(up, gamma), embedding, inverse_rms_table(embedding, EPS), ids
    )
    expected = plain_up(up.double(), gamma.double(), embedding[ids].double(), EPS)
    torch.testing.assert_close(table.double(), expected, rtol=1e-5, atol=1e-5)
    assert table.numel() * table.element_size() == up_table_bytes(len(ids), M, 4)


def test_a_table_above_the_limit_is_off_and_says_its_bytes() -> None:
    plan = plan_up_table(32000, 14336, 2, limit=256 << 20)
    assert not plan.enabled
    assert plan.num_bytes == 917_504_000
    assert "917,504,000 bytes" in plan.message
    assert plan_up_table(8192, 1536, 2).enabled
    up, gamma, embedding = weights(torch.float32)
    folded, table = fold_embedding_norm(up, gamma), inverse_rms_table(embedding, EPS)
    exact = 3 * M * 2
    arguments = (folded, embedding, table, torch.tensor([1, 2, 3]))
    assert up_table(*arguments, dtype=torch.bfloat16, limit=exact).dtype == torch.bfloat16
    with pytest.raises(DrafterError, match=f"{exact} bytes"):
        up_table(*arguments, dtype=torch.bfloat16, limit=exact - 1)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DrafterError, match=r"embnorm must be \[48\], found \[47\]"):
        fold_embedding_norm(torch.ones(M, D), torch.ones(D - 1))
