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
    """None = no penalties."""
    params = req.sampling_params
    if not (params.frequency_penalty or params.presence_penalty or params.min_new_tokens > 0):
        return None
    stop_ids = frozenset(end_ids(req)) if params.min_new_tokens > 0 else frozenset()
    return Penalties(
        params.frequency_penalty, params.presence_penalty, params.min_new_tokens, stop_ids
    )


def end_ids(req: Req) -> list[int]:
    """The token ids that end a request's answer, forbidden before ``min_new_tokens``.

    Upstream leaves out the end tokens of the model's own configs (``eos_token_id`` may be a list),
    and ends the server where the tokenizer has no end token. A sampled one ends the answer all the
    same.
    """
    tokenizer = req.tokenizer
    ids = set(req.sampling_params.stop_token_ids or ())
    if tokenizer is not None:
        ids |= {tokenizer.eos_token_id, *(tokenizer.additional_stop_token_ids or ())}
    if ours.active():
        ids |= set(req.eos_token_ids or ())
        ids = {token for token in ids if token is not None and token < req.vocab_size}
    return list(ids)
