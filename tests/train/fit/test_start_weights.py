"""The solved start: regressions from portions of rows, and that what they solve is solved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sgl_entropy.drafter.model import build_drafter
from sgl_entropy.train.fit.start_weights import AnswerRows, Ridge, initialise, tap_scales
from sgl_entropy.train.loss.unrolled import TargetSide
from sgl_entropy.train.samples.shards import Sample
from tests.train.conftest import VOCAB, tiny_config

D = 32


def answers(count: int, rows: int = 20, noise: float = 0.0) -> list[AnswerRows]:
    """Taps of channels that differ a thousandfold, of which the next final state is a linear map,
    up to noise of so many times its size."""
    chance = torch.Generator().manual_seed(3)
    scale = 10.0 ** torch.linspace(-1.5, 1.5, 2 * D)
    way = torch.randn(2 * D, D, generator=chance) / (2 * D) ** 0.5
    out = []
    for _ in range(count):
        x = torch.randn(rows, 2 * D, generator=chance)
        y = 5.0 * (x @ way + noise * torch.randn(rows, D, generator=chance))
        tokens = torch.randint(3, VOCAB, (rows,), generator=chance)
        out.append(AnswerRows(x * scale, tokens, y))
    return out


def started(held: list[AnswerRows], algorithm: str, residual: bool = False) -> float:
    """Squared error, relative, of what goes into the layer as the next final state: on 2,000 rows
    not seen before, of a drafter that starts from ``held``."""
    chance = torch.Generator().manual_seed(4)
    side = TargetSide(
        # Real embeddings share a direction too.
        1.5 + torch.randn(VOCAB, D, generator=chance),
        torch.randn(96, D, generator=chance),
        tap_scales(held),
    )
    config = replace(tiny_config(algorithm, (0, 1)), fuse_residual=residual)
    drafter = build_drafter(config)
    drafter.t2d[:96] = True
    initialise(drafter, side, held, seed=0)
    other = answers(300)[200:]
    x = torch.cat([rows.taps for rows in other]) / side.tap_scale
    y = torch.cat([rows.final for rows in other])
    e = F.embedding(torch.cat([rows.tokens for rows in other]), side.embedding)
    with torch.no_grad():
        into = drafter.mix(e, drafter.fuse_taps(x))[0]
    y = y / y.pow(2).mean().sqrt()
    return float((into - y).pow(2).mean())


def test_a_ridge_of_portions_is_the_ridge_of_all_rows() -> None:
    chance = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 7, generator=chance), torch.randn(50, 3, generator=chance)
    held = Ridge(7, 3)
    for rows in torch.split(torch.arange(50), 9):
        held.add(x[rows], y[rows])
    # As ordinary least squares with seven more rows that ask every weight to be zero.
    strength = 0.1 * float(x.pow(2).sum(0).mean())
    more = torch.cat([x, strength**0.5 * torch.eye(7)])
    wanted = torch.linalg.lstsq(more, torch.cat([y, torch.zeros(7, 3)])).solution.T
    torch.testing.assert_close(held.solve(0.1), wanted)
    assert held.size == pytest.approx(float(x.pow(2).sum(1).mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "residual"), [("EAGLE3", False), ("EDSD", False), ("EDSD", True)]
)
def test_what_enters_the_layer_starts_as_the_targets_next_state(
    algorithm: str, residual: bool
) -> None:
    error = started(answers(200), algorithm, residual)
    # The published form has only the product to say it with.
    assert error < (0.5 if algorithm == "EDSD" and not residual else 0.01)


def test_more_answers_make_a_better_start() -> None:
    few, many = (started(answers(count, noise=1.0), "EAGLE3") for count in (10, 200))
    assert many < few / 2


def test_answer_rows_are_those_that_draft_each_with_what_follows() -> None:
    numbers = torch.arange(9.0)[:, None].expand(9, 2)
    sample = Sample(7, 4, torch.arange(10), numbers, -numbers, torch.zeros(9), torch.zeros(9))
    rows = AnswerRows.of(sample)
    assert rows.taps[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert rows.tokens.tolist() == [4, 5, 6, 7, 8]
    assert (-rows.final[:, 0]).tolist() == [4, 5, 6, 7, 8]
    assert rows.taps.untyped_storage().nbytes() < numbers.numel() * 4
