"""Which drafted tokens are worth their rows of a verification on a CPU (ours).

A verification multiplies every weight with as many rows as there are draft nodes in the batch. Up
to eight rows cost as much as one. Beyond that a core computes at its peak, and every row costs the
same, whether its token had a chance or not. So the nodes of all requests compete. They are sorted
by the drafter's probability of their whole path p, and as many are verified as maximise the tokens
expected per unit of time,

    (b + sum of p over the kept nodes) / (F + rows),

where b is the number of requests (each emits one token anyway) and F is what a cycle costs besides
its rows (drafting, attention, the engine), in units of a row. A child is never more probable than
its parent, so the kept nodes of a request are a tree with the same root.

What is verified never depends on the target, so outputs do not change: equal to decoding without a
drafter at temperature 0, exactly sampled otherwise.

The plain path beside it is ``SGL_ENTROPY_CPU_CYCLE_ROWS=inf``, under which rows are free.
"""

from __future__ import annotations

import math
import os

import torch

from sgl_entropy.serving.row_costs import paid_rows

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
            parent's, and the parent comes first.
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
    # Stable: of equal scores the parent, which comes first, is taken first.
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
        ``selected_index`` with -1 for pruned nodes; ``trees.build_tree`` leaves them out.
    """
    scores = score_list.gather(1, selected_index)
    # Only the tokens after a chain's own end (``draft_stop``) have probability 0.
    keep = worth_verifying(scores, cycle_rows()) & (scores > 0)
    return selected_index.masked_fill(~keep, -1)
