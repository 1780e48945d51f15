"""Verify only the drafted tokens that are worth their rows (CPU engine; ours).

A verification multiplies every weight with as many rows as there are draft nodes in the batch. Up
to eight rows cost as much as one; beyond, a core computes at its peak and every row costs the
same, whether its token had a chance or not. So the nodes of all requests compete: sorted by the
drafter's probability of their whole path p, as many are verified as maximise the tokens expected
per unit of time,

    (b + sum of p over the kept nodes) / (F + rows),

b the requests (each emits one token anyway) and F what a cycle costs besides its rows (drafting,
attention, the engine), in units of a row. A child is never more probable than its parent, so the
kept nodes of a request are a tree with the same root.

What is verified never depends on the target, so that outputs stay what they were: equal to
decoding without a drafter at temperature 0, exactly sampled otherwise. SGLang's shapes stay as
well: a pruned node keeps its slot and its draft token, is unreachable in the tree and has -1 in
``retrive_index``; only the forward runs on fewer rows, and its outputs are spread out again.

The plain path beside it is ``SGL_ENTROPY_CPU_CYCLE_ROWS=inf``: every row is as good as free.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6.cpu.gemm import paid_rows

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

VARIABLE = "SGL_ENTROPY_CPU_CYCLE_ROWS"
# Fitted to `sgl-entropy figures speed` of the small target, all nodes verified: cycles of batch
# 2 to 16 cost about this many rows besides their rows, those of batch 1 thirteen.
_CYCLE_ROWS = 20.0


def cycle_rows() -> float:
    """F, from the environment or the default.

    Raises:
        ValueError: the variable is not a number of at least 0 (inf: verify every node).
    """
    text = os.getenv(VARIABLE, "")
    try:
        value = float(text) if text else _CYCLE_ROWS
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ValueError(f"{VARIABLE}={text}: expected a number of at least 0, or inf")
    return value


def worth_verifying(scores: torch.Tensor, fixed_rows: float) -> torch.Tensor:
    """Which drafted nodes to verify.

    Args:
        scores: [b, nodes] the drafter's probability of each node's path; a child's is at most its
            parent's, and the parent stands first.
        fixed_rows: F.

    Returns:
        [b, nodes] bool.
    """
    batch, nodes = scores.shape
    total = batch * (nodes + 1)
    everything = torch.ones(batch, nodes, dtype=torch.bool)
    if math.isinf(fixed_rows) or paid_rows(total) == paid_rows(batch):
        return everything
    flat = scores.flatten().float().nan_to_num(0.0)
    # Stable: of equal scores the parent, which stands first, is taken first.
    order = flat.argsort(descending=True, stable=True)
    gains = [0.0, *flat[order].cumsum(0).tolist()]
    best, kept = -1.0, batch * nodes
    rows = paid_rows(batch)
    while True:
        # Rows that are paid for anyway are filled with the next best nodes.
        count = min(rows, total) - batch
        value = (batch + gains[count]) / (fixed_rows + rows)
        if value > best:
            best, kept = value, count
        if rows >= total:
            break
        rows = paid_rows(rows + 1)
    if kept == batch * nodes:
        return everything
    keep = torch.zeros(batch * nodes, dtype=torch.bool)
    keep[order[:kept]] = True
    return keep.view(batch, nodes)


def prune(score_list: torch.Tensor, selected_index: torch.Tensor) -> torch.Tensor:
    """Mark the nodes that are not worth verifying.

    Args:
        score_list: [b, candidates] path probabilities of all candidates.
        selected_index: [b, nodes] candidate numbers of the draft's nodes, ascending.

    Returns:
        ``selected_index`` with -1 for pruned nodes; ``spec_ops.build_tree`` leaves them out.
    """
    scores = score_list.gather(1, selected_index)
    # Of no probability are the tokens behind a chain's own end (``draft_stop``) alone.
    keep = worth_verifying(scores, cycle_rows()) & (scores > 0)
    return selected_index.masked_fill(~keep, -1)


def live_nodes(spec_info: EagleVerifyInput) -> torch.Tensor:
    """[b, nodes] bool: the nodes to verify, the root among them."""
    return spec_info.retrive_index >= 0


def forward_live(
    run: Callable[..., LogitsProcessorOutput], batch: ForwardBatch, kwargs: dict[str, Any]
) -> LogitsProcessorOutput:
    """A verification's forward on the live rows alone.

    Args:
        run: the target's ``forward(input_ids, positions, batch, **kwargs)``. The attention plan
            of ``batch`` was made for its live rows.

    Returns:
        The output for all nodes, [b * nodes, ...]; pruned nodes repeat the row before them, which
        nothing reads.
    """
    live = live_nodes(batch.spec_info)
    # What ``counters.record_cycle`` counts as drafted.
    batch.spec_info.sgl_entropy_nodes = live.sum(1).tolist()
    flat = live.flatten()
    if bool(flat.all()):
        return run(batch.input_ids, batch.positions, batch, **kwargs)
    whole = (batch.input_ids, batch.positions, batch.out_cache_loc)
    batch.input_ids, batch.positions, batch.out_cache_loc = (tensor[flat] for tensor in whole)
    try:
        out = run(batch.input_ids, batch.positions, batch, **kwargs)
    finally:
        batch.input_ids, batch.positions, batch.out_cache_loc = whole
    # The root is live, so the count of live rows up to a node is at least one.
    source = flat.cumsum(0) - 1
    out.next_token_logits = out.next_token_logits[source]
    if out.hidden_states is not None:
        out.hidden_states = out.hidden_states[source]
    return out
