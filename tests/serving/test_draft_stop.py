"""Chains that end early keep the engine's shapes, and a graph is captured at full length."""

from __future__ import annotations

import torch

from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.draft_logits import DraftStats
from sgl_entropy.serving.draft_stop import ends
from sgl_entropy.verify.policies import Svip

SURE, UNSURE = 0.1, 3.0
STEPS = 4


def stats(nats: list[float]) -> DraftStats:
    entropy = torch.tensor(nats)
    return DraftStats(entropy, entropy, torch.zeros(len(nats), 1, dtype=torch.int64))


def drafted(entropies: list[list[float]]) -> tuple[int, Cycle, list[torch.Tensor]]:
    """How many tokens were drafted, the cycle, and the scores at the end."""
    cycle, batch = Cycle(first=stats(entropies[0])), len(entropies[0])
    lists: tuple[list[torch.Tensor], ...] = ([], [], [])
    for step in range(STEPS):
        if step:
            cycle.steps.append(stats(entropies[step]))
        lists[0].append(torch.full((batch, 1, 1), 0.5 ** (step + 1)))
        lists[1].append(torch.full((batch, 1), 7 + step))
        lists[2].append(torch.full((batch, 1), step))
        if ends(cycle, Svip(), step, (lists[0], lists[1], lists[2]), STEPS):
            break
    assert [len(each) for each in lists] == [STEPS] * 3
    assert len(cycle.steps) == STEPS - 1
    return step + 1, cycle, lists[0]


def test_a_batch_drafts_on_while_one_chain_goes_on() -> None:
    count, cycle, scores = drafted([[UNSURE, SURE], [SURE, SURE], [SURE, UNSURE], [SURE, SURE]])
    assert count == 3
    # The token that stops is kept; those after it have probability 0.
    assert [score.flatten().tolist() for score in scores] == [
        [0.5, 0.5],
        [0.0, 0.25],
        [0.0, 0.125],
        [0.0, 0.0],
    ]
    assert cycle.ended is not None
    assert cycle.ended.tolist() == [True, True]


def test_full_chains_are_filled_with_nothing() -> None:
    count, _, scores = drafted([[SURE]] * STEPS)
    assert (count, [float(score) for score in scores]) == (4, [0.5, 0.25, 0.125, 0.0625])


def test_while_a_graph_is_captured_no_chain_ends() -> None:
    """Its first distributions are not known then; asking the device would break the capture."""
    cycle = Cycle()
    for step in range(STEPS):
        if step:
            cycle.steps.append(stats([UNSURE]))
        lists = ([torch.ones(1, 1, 1)], [torch.ones(1, 1)], [torch.ones(1, 1)])
        assert not ends(cycle, Svip(), step, lists, STEPS)
    assert cycle.ended is None
