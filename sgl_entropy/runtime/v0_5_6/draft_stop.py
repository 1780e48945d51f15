"""Chains that end where the drafter is unsure (``--speculative-draft-stop``).

The shapes of SGLang stay: a chain that ends early is filled up with tokens of no probability. The
CPU engine prunes those, so that they cost no row of the verification, and leaves their rows out of
the draft's own steps where that saves anything; elsewhere they are drafted, verified and rejected
like any other. Either way outputs stay exact: what is drafted never decides what the
target writes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_entropy.runtime.v0_5_6 import draft_stats
from sgl_entropy.runtime.v0_5_6.cpu import draft_rows
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.verify.policies import DraftStep

# On SGLang's EagleDraftInput, during a draft: bool [b], chains that have ended.
_ENDED = "sgl_entropy_ended"


def graphs_allowed() -> bool:
    """Whether drafts may be replayed from a captured graph, which cannot end early."""
    mode = served_mode()
    return mode is None or mode.stop is None


def ends(draft_input: Any, step: int, lists: tuple[list[Tensor], list[Tensor], list[Tensor]],
         steps: int) -> bool:  # fmt: skip
    """After a token was drafted: whether every chain of the batch has ended.

    Args:
        step: of the token, from 0; steps: of a full chain.
        lists: scores, tokens and parents so far, as the worker collects them for a chain; scores
            of tokens behind a request's own stop become 0, and if all have ended the lists are
            filled up to full length.
    """
    mode = served_mode()
    if mode is None or mode.stop is None:
        return False
    scores, tokens, parents = lists
    if step == 0:
        setattr(draft_input, _ENDED, None)
    entropy = draft_stats.entropy_at(draft_input, step)
    if entropy is None:
        return False
    ended: Tensor | None = getattr(draft_input, _ENDED, None)
    path = scores[-1].flatten()
    if ended is not None:
        scores[-1] = scores[-1].masked_fill(ended.view(-1, 1, 1), 0.0)
    stops = mode.stop.stops(DraftStep(step + 1, entropy, path))
    ended = stops if ended is None else ended | stops
    setattr(draft_input, _ENDED, ended)
    if step == steps - 1 or not bool(ended.all()):
        return False
    for more in range(step + 1, steps):
        scores.append(torch.zeros_like(scores[-1]))
        tokens.append(torch.zeros_like(tokens[-1]))
        parents.append(torch.full_like(parents[-1][:, :1], more))
    draft_stats.fill(draft_input, steps - 1 - step)
    return True


def forward(runner: Any, batch: Any) -> tuple[Any, bool]:
    """The drafter's next step, for the chains that go on where that is cheaper (CPU engine).

    Args:
        runner: the drafter's ModelRunner; batch: SGLang's ForwardBatch of the draft.
    """
    ended: Tensor | None = getattr(batch.spec_info, _ENDED, None)
    if ended is not None:
        from sgl_entropy.runtime.v0_5_6.cpu.attention import CpuDraftStep

        if isinstance(batch.attn_backend, CpuDraftStep) and draft_rows.saves(~ended):
            return draft_rows.forward_live(runner, batch, ~ended)
    out: tuple[Any, bool] = runner.forward(batch, skip_attn_backend_init=True)
    return out
