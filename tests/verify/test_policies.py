"""Policies decide as their rules say."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_entropy.verify.policies import (
    CalibratedStop,
    DrafterSwitch,
    DraftStep,
    NoStop,
    Svip,
    Typical,
)


def step(*entropies: float, path: float = 1.0) -> DraftStep:
    return DraftStep(1, torch.tensor(entropies), torch.full((len(entropies),), path))


def test_a_chain_stops_after_an_unsure_token() -> None:
    assert Svip().stops(step(0.0, 0.59, 0.61, 3.0)).tolist() == [False, False, True, True]
    assert NoStop().stops(step(0.0, 9.0)).tolist() == [False, False]


def test_a_calibrated_chain_stops_where_the_next_token_does_not_pay() -> None:
    policy = CalibratedStop((0.5, 2.0), (0.9, 0.5, 0.1), cost=0.3)
    assert policy.stops(step(0.1, 1.0, 2.5)).tolist() == [False, False, True]
    # A chain that hardly stands up to here stops earlier.
    assert policy.stops(step(0.1, 1.0, 2.5, path=0.5)).tolist() == [False, True, True]
    assert policy.stops(step(0.1, 1.0, 2.5, path=0.2)).tolist() == [True, True, True]
    # What it keeps for its next step is not part of what it is.
    assert policy == CalibratedStop((0.5, 2.0), (0.9, 0.5, 0.1), cost=0.3)
    assert CalibratedStop((), (0.2,), 0.3).stops(step(0.1, path=0.9)).tolist() == [True]


def test_typical_acceptance() -> None:
    probability = torch.tensor([0.1, 0.08, 0.08, 0.01])
    entropy = torch.tensor([0.0, 0.0, 2.0, 2.0])
    # The limit is 0.09 where the target is sure, 0.3 exp(-2) = 0.041 where it is not.
    assert Typical().accepts(probability, entropy).tolist() == [True, False, True, False]


def test_drafters_are_not_switched_to_and_fro() -> None:
    policy, now, seen = DrafterSwitch(down=1.0, up=2.0), DrafterSwitch.SMALL, []
    for entropy in (0.5, 1.5, 1.9, 2.1, 1.5, 1.1, math.nan, 0.9, 1.5):
        now = policy.choose(now, entropy)
        seen.append(now)
    assert seen == [0, 0, 0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Svip(factor=0), "above 0"),
        (lambda: Svip(limit=math.nan), "above 0"),
        (lambda: CalibratedStop((1.0,), (0.5,), 0.1), "one acceptance more"),
        (lambda: CalibratedStop((1.0, 1.0), (0.5, 0.5, 0.5), 0.1), "must rise"),
        (lambda: CalibratedStop((math.nan,), (0.5, 0.5), 0.1), "finite"),
        (lambda: CalibratedStop((), (1.5,), 0.1), "shares"),
        (lambda: CalibratedStop((), (0.5,), 0.0), "shares"),
        (lambda: Typical(eps=0), "eps and delta"),
        (lambda: DrafterSwitch(2.0, 1.0), "down < up"),
        (lambda: DrafterSwitch(math.nan, 1.0), "down < up"),
    ],
)
def test_settings_that_make_no_sense(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
