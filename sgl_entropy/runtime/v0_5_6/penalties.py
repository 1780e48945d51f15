"""Exact penalties under speculation: every draft node sees exactly the tokens before it.

Upstream feeds the penalizers one token a cycle and applies the same penalty to all nodes of a
draft ("a relaxed version" in its words), so output with a frequency penalty differs from the
output without speculation. ``serving.penalties`` does it node by node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sgl_entropy.runtime.v0_5_6 import ours
from sgl_entropy.serving.penalties import Penalties, penalize_nodes
from sgl_entropy.serving.trees import tree_parents

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


def applied_exactly(batch: ScheduleBatch, draft: EagleVerifyInput, logits: torch.Tensor) -> bool:
    """Add logit bias and penalties to the logits of every node, in place.

    Args:
        logits: [b * n, vocabulary] float, request by request, node by node.

    Returns:
        False: nothing was added, upstream is to do it.
    """
    info = batch.sampling_info
    required = info.penalizer_orchestrator.is_required
    if not (required or info.logit_bias is not None) or not ours.active():
        return False
    nodes = draft.draft_token_num
    if required:
        candidates = draft.draft_token.view(-1, nodes).tolist()
        parents = tree_parents(
            draft.retrive_next_token.tolist(), draft.retrive_next_sibling.tolist()
        )
        for i, req in enumerate(batch.reqs):
            asked = _asked(req)
            if asked is not None:
                rows = logits[i * nodes : (i + 1) * nodes]
                penalize_nodes(rows, asked, req.output_ids, candidates[i], parents[i])
    if info.logit_bias is not None:
        logits.add_(torch.repeat_interleave(info.logit_bias, nodes, dim=0))
    return True


def _asked(req: Req) -> Penalties | None:
    """None = no penalties. The ids that end it are those of SGLang's own min-new-tokens penalty."""
    params = req.sampling_params
    if not (params.frequency_penalty or params.presence_penalty or params.min_new_tokens > 0):
        return None
    tokenizer = req.tokenizer
    stop_ids = frozenset[int]()
    if params.min_new_tokens > 0:
        stop_ids = frozenset(
            (
                *(params.stop_token_ids or ()),
                *(tokenizer.additional_stop_token_ids or ()),
                tokenizer.eos_token_id,
            )
        )
    return Penalties(
        params.frequency_penalty, params.presence_penalty, params.min_new_tokens, stop_ids
    )
