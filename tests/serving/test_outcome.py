"""What one cycle came to for each of its requests, where two drafters are served."""

from __future__ import annotations

import math

import pytest
import torch

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.serving import verification
from sgl_entropy.serving.asked import Asked
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.outcome import CycleOutcome, outcome
from sgl_entropy.serving.trees import DraftTree

NODES = 3
ASKS, SILENT = Asked.read({"spec_drafters": True}, None), Asked.read(None, None)


def verified(slots: list[list[int]], logits: torch.Tensor, drafter: int | None = 1) -> Cycle:
    """A cycle whose verification has begun; drafted tokens count up from 20."""
    tree = DraftTree(
        torch.arange(20, 20 + NODES * len(slots)),
        torch.tensor(slots),
        torch.full((len(slots), NODES), -1),
        torch.full((len(slots), NODES), -1),
    )
    cycle = Cycle(drafter=drafter, verified=[sum(slot >= 0 for slot in row) for row in slots])
    verification.begin(cycle, tree, logits, None, ())
    return cycle


def test_a_drafter_is_chosen_by_the_mean_over_emitted_positions() -> None:
    logits = torch.randn(2 * NODES, 30, generator=torch.Generator().manual_seed(0)) * 3
    cycle = verified([[0, 1, 2], [3, -1, -1]], logits)
    assert math.isnan(cycle.mean_target_entropy([]))
    # Three nodes were accepted, of which the request took two; then a lone root.
    found = outcome(cycle, 0, [0, 1, 2], 2, NODES, ASKS)
    assert (found.drafted, found.accepted, found.emitted, found.drafter) == (2, 2, 2, 1)
    assert found.drafter_cycle is not None
    assert (found.drafter_cycle.drafter, found.drafter_cycle.drafted) == ("large", [21, 22])
    assert (found.drafter_cycle.accepted, found.drafter_cycle.emitted) == (2, 2)
    # Pruned: nothing but the root was verified.
    other = outcome(cycle, 1, [3, -1, -1], 1, NODES, ASKS)
    assert other.drafter_cycle is not None
    assert (other.drafted, other.drafter_cycle.drafted) == (0, [])
    expected = shannon_entropy(logits)[[0, 1, 3]]
    assert cycle.mean_target_entropy([0, 1, 3]) == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found.drafter_cycle.target_entropy == pytest.approx(expected[:2].tolist(), abs=1e-5)
    assert outcome(cycle, 0, [0, 1, 2], 2, NODES, SILENT).drafter_cycle is None


def test_logits_that_are_no_numbers_do_not_count() -> None:
    logits = torch.zeros(2 * NODES, 30)
    logits[:NODES] = math.nan
    cycle = verified([[0, 1, 2], [3, 4, 5]], logits)
    assert math.isnan(cycle.mean_target_entropy([0]))
    assert cycle.mean_target_entropy([0, 3]) == pytest.approx(math.log(30))


def test_with_one_drafter_and_no_mode_nothing_is_computed() -> None:
    cycle = verified([[0, 1, 2]], torch.zeros(NODES, 30), drafter=None)
    assert (cycle.target, cycle.verification) == (None, None)
    found = outcome(cycle, 0, [0, 1, -1], 1, NODES, ASKS)
    assert found == CycleOutcome(drafted=2, accepted=1, emitted=1, depth=2)
