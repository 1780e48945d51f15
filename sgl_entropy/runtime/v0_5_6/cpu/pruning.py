"""Verify only the drafted tokens that ``serving.pruning`` chooses (CPU engine).

SGLang's shapes stay: a pruned node keeps its slot and its draft token, is unreachable in the tree
and has -1 in ``retrive_index``; only the forward runs on fewer rows, and its outputs are spread
out again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.serving import attached
from sgl_entropy.serving.pruning import prune

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput

__all__ = ["forward_live", "live_nodes", "prune"]


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
        The output for all nodes, [b * nodes, ...]; pruned nodes repeat the row before them, and
        nothing reads it. The batch's cycle knows how many nodes of each request were verified.
    """
    live = live_nodes(batch.spec_info)
    attached.cycle_for(batch.spec_info).verified = live.sum(1).tolist()
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
