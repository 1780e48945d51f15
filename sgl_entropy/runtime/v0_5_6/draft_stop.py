"""Chains that end where the drafter is unsure (``--speculative-draft-stop``).

The CPU engine prunes the tokens that fill up a chain, so that they cost no row of the
verification, and leaves their rows out of the draft's own steps where that saves anything.
Elsewhere they are drafted, verified and rejected like any other. Either way outputs stay exact:
what is drafted never decides what the target writes.
"""

from __future__ import annotations

from typing import Any

from sgl_entropy.runtime.v0_5_6.cpu import draft_rows
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving import attached, draft_stop
from sgl_entropy.serving.cycle import Cycle
from sgl_entropy.serving.draft_stop import DraftLists


def graphs_allowed() -> bool:
    """Whether drafts may be replayed from a captured graph, which cannot end early."""
    mode = served_mode()
    return mode is None or mode.stop is None


def ends(draft_input: Any, step: int, lists: DraftLists, steps: int) -> bool:
    """After a token was drafted: whether every chain of the batch has ended.

    Args:
        step: of the token, from 0; steps: of a full chain.
        lists: see ``serving.draft_stop.ends``, which changes them.
    """
    mode = served_mode()
    if mode is None or mode.stop is None:
        return False
    return draft_stop.ends(attached.cycle_for(draft_input), mode.stop, step, lists, steps)


def forward(runner: Any, batch: Any) -> tuple[Any, bool]:
    """The drafter's next step, for the chains that go on where that is cheaper (CPU engine).

    Args:
        runner: the drafter's ModelRunner; batch: SGLang's ForwardBatch of the draft.
    """
    cycle = attached.of(batch.spec_info, Cycle)
    if cycle is not None and cycle.ended is not None:
        from sgl_entropy.runtime.v0_5_6.cpu.attention import CpuDraftStep

        if isinstance(batch.attn_backend, CpuDraftStep) and draft_rows.saves(~cycle.ended):
            return draft_rows.forward_live(runner, batch, ~cycle.ended)
    out: tuple[Any, bool] = runner.forward(batch, skip_attn_backend_init=True)
    return out
