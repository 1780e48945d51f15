"""LiDAR in its small form against the [d, d] definition, and what it must say of known cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sgl_entropy.select import bootstrap, scatter
from sgl_entropy.select.bootstrap import (
    curvature_profiles,
    interval,
    lidar_profiles,
)
from sgl_entropy.select.choice import win_share
from sgl_entropy.select.lidar import gram, lidar, lidar_of
from sgl_entropy.select.reference import plain_lidar
from sgl_entropy.select.scatter import lidar_by_sums
from sgl_entropy.verify.resampling import resample_counts, seeded


def pooled(n: int, q: int, d: int, rank: int | None = None, noise: float = 0.3) -> Tensor:
    """Texts apart from each other by ~0.5, views by ``noise`` of it, around a common mean."""
    chance = torch.Generator().manual_seed(n * 1000 + q * 100 + d)

    def drawn(*shape: int) -> Tensor:
        x = torch.randn(*shape, rank or d, generator=chance, dtype=torch.float64)
        if rank is None:
            return x
        basis = torch.Generator().manual_seed(7)
        return x @ torch.randn(rank, d, generator=basis, dtype=torch.float64)

    x = drawn(n, 1) + noise * drawn(n, q) + 5 * drawn(1, 1)
    return 0.5 * x / math.sqrt(d)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(pooled(20, 3, 5), id="more-texts-than-dimensions"),
        pytest.param(pooled(6, 4, 50), id="more-dimensions-than-vectors"),
        pytest.param(pooled(8, 4, 20), id="between"),
        pytest.param(pooled(10, 4, 16, rank=3), id="rank-deficient"),
        pytest.param(pooled(6, 4, 20, noise=0.0), id="views-all-alike"),
        pytest.param(pooled(6, 4, 20, noise=1e-3), id="noise-as-small-as-delta"),
    ],
)
def test_the_small_form_is_the_definition(vectors: Tensor) -> None:
    value = lidar(vectors)
    assert value == pytest.approx(plain_lidar(vectors), rel=1e-6)
    assert 0 < value <= math.log(len(vectors) - 1) + 1e-9


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(pooled(60, 3, 5), id="more-texts-than-dimensions"),
        pytest.param(pooled(20, 4, 16, rank=3), id="rank-deficient"),
        pytest.param(pooled(30, 4, 20, noise=0.0), id="views-all-alike"),
        pytest.param(pooled(30, 4, 20, noise=1e-3), id="noise-as-small-as-delta"),
        pytest.param(pooled(6, 4, 50), id="more-dimensions-than-vectors"),
    ],
)
def test_sums_over_texts_are_the_definition_too(
    vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "_ROWS", 16)
    exact = plain_lidar(vectors)
    assert lidar_by_sums(vectors) == pytest.approx(exact, rel=1e-6)
    assert lidar_by_sums(vectors, dtype=torch.float32) == pytest.approx(exact, abs=2e-3)
    counts = resample_counts(len(vectors), 1, seeded(3))[0]
    again = lidar_by_sums(vectors, counts)
    assert again == pytest.approx(lidar_of(gram(vectors), counts), rel=1e-6)


def test_many_texts_make_no_matrix_as_wide_as_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "gram", lambda vectors: pytest.fail("[nq, nq]"))
    layers = torch.stack([pooled(60, 4, 12), pooled(60, 4, 12, noise=1.0)])
    profile, again = lidar_profiles(layers, resample_counts(60, 3, seeded(1)))
    assert profile.tolist() == pytest.approx([lidar(layers[0]), lidar(layers[1])], rel=1e-6)
    assert again.shape == (3, 2)
    monkeypatch.undo()
    assert not scatter.prefers_sums(torch.empty(128, 16, 576)), "the usual sample"


def test_no_matrix_is_as_wide_as_the_hidden_size() -> None:
    products = gram(pooled(5, 3, 4000))
    assert {products.within.shape, products.cross.shape, products.between.shape} == {
        (15, 15),
        (5, 15),
        (5, 5),
    }


def test_texts_equally_apart_reach_the_bound_and_equal_texts_give_zero() -> None:
    corners = torch.eye(6, dtype=torch.float64)[:, None].repeat(1, 3, 1)
    assert lidar(corners) == pytest.approx(math.log(5))
    assert lidar(torch.ones(6, 3, 4)) == 0.0


def test_noise_on_what_tells_texts_apart_costs_entropy() -> None:
    quiet = pooled(12, 6, 8)
    loud = quiet.clone()
    # All but two of the directions drown.
    chance = torch.Generator().manual_seed(3)
    loud[..., 2:] += torch.randn(12, 6, 6, generator=chance, dtype=torch.float64)
    assert lidar(loud) < lidar(quiet) - 0.1


@pytest.mark.parametrize("shape", [(7, 3, 5), (7, 3, 40)])
def test_a_resample_is_its_texts_written_out(shape: tuple[int, int, int]) -> None:
    vectors = pooled(*shape)
    counts = torch.tensor([0, 3, 1, 0, 1, 2, 0])
    again = lidar_of(gram(vectors), counts)
    assert again == pytest.approx(plain_lidar(vectors.repeat_interleave(counts, 0)), rel=1e-6)
    assert again != pytest.approx(lidar(vectors), rel=1e-3)


def test_a_resample_of_one_text_alone_tells_nothing_apart() -> None:
    assert lidar_of(gram(pooled(4, 3, 6)), torch.tensor([0, 4, 0, 0])) == pytest.approx(0, abs=1e-6)


def test_resamples_in_single_precision_lose_nothing_that_matters() -> None:
    layers = torch.stack([pooled(10, 4, 30), pooled(10, 4, 30, noise=1e-3)])
    counts = resample_counts(10, 5, seeded(1))
    profile, again = lidar_profiles(layers, counts)
    assert profile.tolist() == [lidar(layers[0]), lidar(layers[1])]
    for row, resample in enumerate(counts):
        for layer in range(2):
            exact = lidar_of(gram(layers[layer]), resample)
            assert float(again[row, layer]) == pytest.approx(exact, abs=2e-3)


def test_resamples_are_seeded_and_take_as_many_texts() -> None:
    counts = resample_counts(9, 30, seeded(4))
    assert counts.sum(1).tolist() == [9] * 30
    assert torch.equal(counts, resample_counts(9, 30, seeded(4)))
    assert not torch.equal(counts, resample_counts(9, 30, seeded(5)))


def test_a_dominant_layer_wins_every_resample_and_equals_do_not() -> None:
    chance = torch.Generator().manual_seed(0)
    by_text = torch.rand(6, 20, generator=chance, dtype=torch.float64)
    by_text[3] += 2
    counts = resample_counts(20, 200, seeded(0))
    again = curvature_profiles(by_text, counts)
    assert win_share(again.tolist(), 3) == 1.0
    shares = [win_share(again.tolist(), layer, without={3}) for layer in (1, 2, 4)]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) < 1
    torch.testing.assert_close(
        curvature_profiles(by_text, torch.ones(1, 20, dtype=torch.long))[0], by_text.mean(1)
    )


def test_intervals_show_spread_and_lie_about_the_profile() -> None:
    vectors = torch.stack([pooled(16, 4, 12), pooled(16, 4, 12, noise=1.0)])
    profile, again = lidar_profiles(vectors, resample_counts(16, 40, seeded(0)))
    # Fewer different texts: what a plain percentile interval would show.
    assert bool((again.max(0).values < profile).all())
    for layer, (low, high) in enumerate(interval(profile, again)):
        assert low < float(profile[layer]) < high
        shifted = again[:, layer] - again[:, layer].mean() + profile[layer]
        assert int(((shifted >= low) & (shifted <= high)).sum()) == 36  # 90 % of 40
