"""Muon: what its update is, which weights it moves, and that a fit with it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.fit.optimizer import Muon, orthogonalised
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.fit import FitSettings
from tests.train.fit.test_trainer import ARMS, GPU, SETTINGS, start

MUON = replace(SETTINGS, optimizer="muon")


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_an_update_keeps_the_directions_and_evens_out_their_sizes(shape: tuple[int, int]) -> None:
    chance = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=chance), full_matrices=False)
    # Sizes that differ fiftyfold.
    matrix = u @ torch.diag(torch.logspace(-1.7, 0, len(vh))) @ vh
    inner = u.T @ orthogonalised(matrix) @ vh.T
    sizes = inner.diagonal()
    assert 0.6 < float(sizes.min()) <= float(sizes.max()) < 1.3
    torch.testing.assert_close(inner, torch.diag(sizes), atol=1e-4, rtol=0)
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


def test_a_step_is_sized_as_adamws_and_decays_as_its() -> None:
    chance = torch.Generator().manual_seed(1)
    before = torch.randn(30, 80, generator=chance)
    gradient = torch.randn(30, 80, generator=chance)
    moved = {}
    for decay in (0.0, 0.5):
        weight = torch.nn.Parameter(before.clone())
        weight.grad = gradient.clone()
        Muon([{"params": [weight], "weight_decay": decay}], 1e-2).step()
        moved[decay] = weight.detach()
    update = (before - moved[0.0]) / 1e-2
    assert float(update.pow(2).mean().sqrt()) == pytest.approx(0.2, rel=0.3)
    assert float((update * gradient).sum()) > 0
    torch.testing.assert_close(moved[0.5], moved[0.0] - 0.5e-2 * before)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm[0])
def test_muon_moves_attention_and_mlp_alone(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path, arm: tuple[str, tuple[int, ...]]
) -> None:
    after = {}
    for name, settings in (("adamw", SETTINGS), ("muon", MUON)):
        fit = start(tiny_store, tiny_target, tmp_path / name, arm, settings)
        run_fit(fit, lambda line: None, stop_after=1)
        after[name] = dict(fit.drafter.named_parameters())
    for name, weight in after["adamw"].items():
        own = name.startswith("midlayer.") and weight.dim() == 2
        assert torch.equal(weight, after["muon"][name]) != own, name


def test_with_muon_a_resumed_fit_equals_an_unbroken_one_and_learns(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    whole = start(tiny_store, tiny_target, tmp_path / "a", ARMS[0], MUON)
    unbroken = run_fit(whole, lambda line: None)
    for stop in (2, None):
        part = start(tiny_store, tiny_target, tmp_path / "b", ARMS[0], MUON)
        resumed = run_fit(part, lambda line: None, stop_after=stop)
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"fit\.optimizer: was 'muon', is 'adamw'"):
        start(tiny_store, tiny_target, tmp_path / "b", ARMS[0])


@pytest.mark.gpu
def test_a_gpu_moves_as_the_cpu_does() -> None:
    """On a machine with CUDA: pytest -m gpu tests/train/test_optimizer.py"""
    matrix = torch.randn(64, 150, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        orthogonalised(matrix.to(GPU)).cpu(), orthogonalised(matrix), atol=1e-3, rtol=1e-3
    )


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fit\.optimizer must be one of"):
        FitSettings(optimizer="sgd")
