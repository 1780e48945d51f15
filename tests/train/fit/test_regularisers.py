"""What a recipe may add: rates by part, weight decay, noise on the features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.processes import ProcessGroup
from sgl_entropy.train.samples.store import Store
from tests.train.fit.test_trainer import ARMS, SETTINGS, start


def after(store: Store, target: PlainTarget, folder: Path, stop: int = 3, **more: float) -> Fit:
    fit = start(store, target, folder, ARMS[0], replace(SETTINGS, **more))
    run_fit(fit, lambda line: None, stop_after=stop)
    return fit


def test_a_rate_of_zero_leaves_the_head_as_it_started(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    still = after(tiny_store, tiny_target, tmp_path / "a", head_rate=0.0)
    moved = after(tiny_store, tiny_target, tmp_path / "b")
    begun = start(tiny_store, tiny_target, tmp_path / "c", ARMS[0])
    assert torch.equal(still.drafter.lm_head.weight, begun.drafter.lm_head.weight)
    assert not torch.equal(moved.drafter.lm_head.weight, begun.drafter.lm_head.weight)
    assert not torch.equal(still.drafter.fc.weight, begun.drafter.fc.weight)


def test_weight_decay_shrinks_matrices_alone(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    plain = after(tiny_store, tiny_target, tmp_path / "a", stop=1)
    decayed = after(tiny_store, tiny_target, tmp_path / "b", stop=1, weight_decay=0.5)
    begun = start(tiny_store, tiny_target, tmp_path / "c", ARMS[0])
    rate = SETTINGS.rate(0, sum(len(begun.plan(e)) for e in range(SETTINGS.epochs)))
    weights = [dict(fit.drafter.named_parameters()) for fit in (begun, plain, decayed)]
    for name, first in weights[0].items():
        factor = SETTINGS.solved_rate if name.startswith(("fc.", "edfuse.")) else 1.0
        kept = first.dim() == 1 or name.startswith("lm_head.")
        lost = torch.zeros_like(first) if kept else first * rate * factor * 0.5
        torch.testing.assert_close(weights[2][name], weights[1][name] - lost, msg=name)


def test_noise_is_drawn_by_seed_and_step_within_its_bound(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    fit = after(tiny_store, tiny_target, tmp_path / "a", stop=1, noise=0.25)
    entries = fit.plan(1)[0]
    plain = fit.samples.batch(entries, 2, fit.group, prompts=False)
    one, again = fit._noisy(plain, entries), fit._noisy(plain, entries)
    assert plain is not None
    assert one is not None
    assert again is not None
    assert torch.equal(one.features, again.features)
    moved = ((one.features - plain.features).float() / fit.side.tap_scale).abs()
    real = moved[moved.sum(-1) > 0]
    assert len(real) == sum(entry.length - 2 for entry in entries), "padding is left alone"
    assert 0.2 < float(real.quantile(0.9)) < 0.3
    fit.step += 1
    later = fit._noisy(plain, entries)
    assert later is not None
    assert not torch.equal(one.features, later.features)


def test_a_resumed_run_draws_the_same_noise(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    unbroken = after(tiny_store, tiny_target, tmp_path / "a", stop=5, noise=0.1)
    after(tiny_store, tiny_target, tmp_path / "b", stop=2, noise=0.1)
    resumed = after(tiny_store, tiny_target, tmp_path / "b", stop=5, noise=0.1)
    assert torch.equal(unbroken.drafter.fc.weight, resumed.drafter.fc.weight)


def test_noise_does_not_depend_on_who_draws_it(
    tiny_store: Store, tiny_target: PlainTarget, tmp_path: Path
) -> None:
    """Two processes draw for their sequences what one draws for all, whatever the seed."""
    settings = replace(SETTINGS, noise=0.25, seed=2**24)
    one, left, right = (
        start(tiny_store, tiny_target, tmp_path / str(i), ARMS[0], settings) for i in range(3)
    )
    left.group, right.group = ProcessGroup(0, 2), ProcessGroup(1, 2)
    entries = max(one.plan(0), key=len)
    assert len(entries) > 2
    whole = one._batch(entries, 2, 0.0)
    assert whole is not None
    for rank, fit in enumerate((left, right)):
        share = fit._batch(entries, 2, 0.0)
        assert share is not None
        rows = share.features.shape[1]
        assert torch.equal(share.features, whole.features[rank::2, :rows])
