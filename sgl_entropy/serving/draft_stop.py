"""Chains that end early: the lists of a draft whose chains stop where the drafter is unsure.

The engine's shapes stay: a chain that ends early is filled up with tokens of probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.verify.policies import DraftStep, DraftStop

# Scores, tokens and parents so far, one tensor a step, as SGLang's worker collects them.
DraftLists = tuple[list[Tensor], list[Tensor], list[Tensor]]


def ends(cycle: Cycle, stop: DraftStop, step: int, lists: DraftLists, steps: int) -> bool:
    """After a token was drafted: whether every chain of the batch has ended.

    Args:
        step: of the token, from 0; steps: of a full chain.
        lists: the scores of tokens after a request's own stop become 0. If all chains have ended,
            the lists are filled up to full length.
    """
    scores, tokens, parents = lists
    if step == 0:
        cycle.ended = None
    entropy = cycle.draft_entropy(step)
    if entropy is None:
        # A graph is being captured; drafts that may end early do not replay it.
        return False
    path = scores[-1].flatten()
    stops = stop.stops(DraftStep(step + 1, entropy, path))
    if cycle.ended is not None:
        scores[-1] = scores[-1].masked_fill(cycle.ended.view(-1, 1, 1), 0.0)
        stops = cycle.ended | stops
    cycle.ended = stops
    if step == steps - 1 or not bool(cycle.ended.all()):
        return False
    for more in range(step + 1, steps):
        scores.append(torch.zeros_like(scores[-1]))
        tokens.append(torch.zeros_like(tokens[-1]))
        parents.append(torch.full_like(parents[-1][:, :1], more))
    cycle.fill(steps - 1 - step)
    return True
