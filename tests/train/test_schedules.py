"""EDTrain's schedules as the paper states them, and where they must not slip."""

from __future__ import annotations

import pytest
import torch

from sgl_entropy.train.schedules import learned_rows, masked_percent, unrolled_steps
from sgl_entropy.train.settings.file import load_settings


def test_the_papers_schedules() -> None:
    """EDSD paper, section 4.1: T = 8, gamma = 3, S_max = 7."""
    assert [masked_percent(t, 8, 3.0) for t in range(8)] == [21, 18, 15, 12, 9, 6, 3, 0]
    assert [unrolled_steps(t, 8, 7) for t in range(8)] == [1, 1, 2, 3, 4, 5, 6, 7]
    assert [unrolled_steps(t, 8, 7, "ceil") for t in range(8)] == [1, 2, 3, 4, 5, 6, 7, 7]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("most", [1, 2, 7, 50])
@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_steps_rise_to_the_most(epochs: int, most: int, rounding: str) -> None:
    steps = [unrolled_steps(t, epochs, most, rounding) for t in range(epochs)]
    assert steps == sorted(steps)
    assert steps[-1] == most
    assert epochs == 1 or steps[0] == 1


def test_the_most_uncertain_rows_are_left_out() -> None:
    entropy = torch.tensor([0.1, 3.0, 0.5, 2.0, 0.0, 1.0, 0.2, 0.3, 0.4, 0.6])
    assert learned_rows(entropy, 0.0).all()
    assert learned_rows(entropy, 9.9).all(), "less than one whole row"
    assert (~learned_rows(entropy, 21.0)).nonzero().flatten().tolist() == [1, 3]
    assert (~learned_rows(entropy, 99.9)).sum() == 9
    tied = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert learned_rows(tied, 50.0).tolist() == [True, True, False, False]
    assert learned_rows(torch.zeros(0), 50.0).tolist() == []


def test_settings_refuse_schedules_that_cannot_be() -> None:
    for override, message in (
        ("fit.mask_gamma=34", "must leave something of the first of 4 epochs"),
        ("fit.mask_gamma=-1", "must leave something"),
        ("fit.max_steps=-1", "max_steps must be at least 0"),
        ("fit.step_rounding=round", "step_rounding must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            load_settings(None, [override])
    fit = load_settings(None, ["fit.max_steps=7", "fit.epochs=8", "fit.mask_gamma=3"]).fit
    assert [fit.steps_in(t) for t in range(8)] == [1, 1, 2, 3, 4, 5, 6, 7]
