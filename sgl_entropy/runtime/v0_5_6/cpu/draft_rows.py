"""Draft on only for the requests whose chains go on (CPU engine; ours).

A chain that has ended (``draft_stop``) keeps its place in SGLang's batch. If a draft step is
cheaper without its row, the step runs on the other rows and its outputs are spread out again;
nothing reads the row of an ended chain. The plain path beside it is the step on all rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgl_entropy.serving.attention_plans import narrowed
from sgl_entropy.serving.row_costs import paid_rows


def saves(live: Tensor) -> bool:
    """Whether a step of the ``live`` rows (bool [b]) costs less than one of all b."""
    rows = int(live.sum())
    return rows > 0 and paid_rows(rows) < paid_rows(len(live))


def forward_live(runner: Any, batch: Any, live: Tensor) -> tuple[Any, bool]:
    """One draft step of a chain on its ``live`` rows (bool [b]).

    Args:
        runner: the drafter's ModelRunner; batch: SGLang's ForwardBatch, left as it was.

    Returns:
        What the runner returns, with a row for every request; an ended chain's row repeats
        another's.
    """
    spec, backend = batch.spec_info, batch.attn_backend
    whole = (batch.input_ids, batch.positions, batch.out_cache_loc, spec.hidden_states)
    plan = backend.plan
    batch.input_ids, batch.positions, batch.out_cache_loc, spec.hidden_states = (
        tensor[live] for tensor in whole
    )
    backend.plan = narrowed(plan, live)
    try:
        out, graph = runner.forward(batch, skip_attn_backend_init=True)
    finally:
        batch.input_ids, batch.positions, batch.out_cache_loc, spec.hidden_states = whole
        backend.plan = plan
    source = (live.cumsum(0) - 1).clamp(min=0)
    out.next_token_logits = out.next_token_logits[source]
    out.hidden_states = out.hidden_states[source]
    return out, graph
