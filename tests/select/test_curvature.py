"""Turns of paths whose angles are known, and what a row that stands still must not do."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sgl_entropy.select.curvature import mean_turn
from sgl_entropy.select.rows import pooled_rows, unit_rows


def turn(*points: tuple[float, ...]) -> float:
    rows = torch.tensor(points, dtype=torch.float64)[None]
    return float(mean_turn(rows, torch.tensor([len(points)])))


def test_a_straight_line_does_not_turn() -> None:
    assert turn(*[(3.0 * i, -1.0 * i, 0.5 * i) for i in range(7)]) == pytest.approx(0, abs=1e-7)


def test_a_staircase_turns_by_right_angles() -> None:
    steps = [(float((i + 1) // 2), float(i // 2)) for i in range(8)]
    assert turn(*steps) == pytest.approx(math.pi / 2)


def test_the_cosine_is_absolute() -> None:
    # Forth and back: the signed cosine is -1, an angle of pi.
    assert turn((0.0, 0.0), (1.0, 0.0), (0.0, 0.0)) == pytest.approx(0)
    # 120 degrees between the steps count as 60.
    sharp = (1 + math.cos(math.radians(120)), math.sin(math.radians(120)))
    assert turn((0.0, 0.0), (1.0, 0.0), sharp) == pytest.approx(math.pi / 3)


def test_steps_of_length_zero_turn_by_nothing_and_count() -> None:
    assert turn((1.0, 2.0), (1.0, 2.0), (1.0, 2.0)) == 0.0
    # Of two turns, the one beside the rest is 0.
    corner = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    assert turn(*corner, (1.0, 1.0)) == pytest.approx(math.pi / 4)


def test_two_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 tokens"):
        turn((0.0, 0.0), (1.0, 0.0))


def written_out(hidden: Tensor) -> tuple[float, Tensor]:
    """Both reductions of one text as the specification words them, row by row."""
    rows = [row / row.norm() for row in hidden.double() - hidden.double().mean(0)]
    steps = [after - before for before, after in pairwise(rows)]
    angles = [
        math.acos(min(1.0, abs(float(u @ v)) / float(u.norm() * v.norm())))
        for u, v in pairwise(steps)
    ]
    return sum(angles) / len(angles), torch.stack(rows).mean(0)


def test_a_batch_is_each_text_whatever_the_padding_holds() -> None:
    torch.manual_seed(1)
    texts = [torch.randn(n, 6) * 10**n for n in (3, 5, 9)]
    hidden = torch.full((3, 9, 6), float("nan"))
    for i, text in enumerate(texts):
        hidden[i, : len(text)] = text
    lengths = torch.tensor([3, 5, 9])
    rows = unit_rows(hidden, lengths)
    turns, pooled = mean_turn(rows, lengths), pooled_rows(rows, lengths)
    for i, text in enumerate(texts):
        angle, mean = written_out(text)
        assert float(turns[i]) == pytest.approx(angle, abs=1e-9)
        torch.testing.assert_close(pooled[i], mean, rtol=0, atol=1e-9)


def test_a_text_of_equal_rows_is_zero_not_nan() -> None:
    lengths = torch.tensor([4])
    rows = unit_rows(torch.ones(1, 4, 3), lengths)
    assert rows.abs().max() == 0
    assert mean_turn(rows, lengths).tolist() == [0.0]
