"""Exact penalties under speculation: every draft node sees the tokens before it, no more, no less.

Upstream feeds the penalizers one token a cycle and applies the same penalty to all nodes of a
draft ("a relaxed version" in its words), so output with a frequency penalty differs from the
output without speculation. Here the counts come from the request's own output and from the
node's path, and greedy output is the same token for token (ours).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from sgl_entropy.runtime.v0_5_6 import ours

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


def applied_exactly(batch: ScheduleBatch, draft: EagleVerifyInput, logits: torch.Tensor) -> bool:
    """Add logit bias and penalties to the logits of every node, in place; False = upstream's turn.

    Args:
        logits: [b * n, vocabulary] float, request by request, node by node.
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
            params = req.sampling_params
            if params.frequency_penalty or params.presence_penalty or params.min_new_tokens > 0:
                rows = logits[i * nodes : (i + 1) * nodes]
                penalize_nodes(rows, req, candidates[i], parents[i])
    if info.logit_bias is not None:
        logits.add_(torch.repeat_interleave(info.logit_bias, nodes, dim=0))
    return True


def tree_parents(next_token: list[list[int]], next_sibling: list[list[int]]) -> list[list[int]]:
    """Parents of the nodes of each tree from its child and sibling links; -1 = unreachable."""
    out = []
    for child, sibling in zip(next_token, next_sibling, strict=True):
        parent = [-1] * len(child)
        waiting = [0]
        while waiting:
            node = waiting.pop()
            below = child[node]
            while below != -1:
                parent[below] = node
                waiting.append(below)
                below = sibling[below]
        out.append(parent)
    return out


def penalize_nodes(rows: torch.Tensor, req: Req, tokens: list[int], parents: list[int]) -> None:
    """Penalize one request's nodes in place.

    The request's output already holds node 0's token (the last verified one). Formulae as in
    SGLang's penalizers: frequency times count, presence once, stop tokens at -inf while the
    output is shorter than ``min_new_tokens``.

    Args:
        rows: [n, vocabulary]; tokens, parents: n entries, parents from :func:`tree_parents`.
    """
    params = req.sampling_params
    frequency, presence = params.frequency_penalty, params.presence_penalty
    counts = Counter(req.output_ids)
    if frequency or presence:
        index = torch.tensor(list(counts), device=rows.device)
        amount = torch.tensor(
            [frequency * count + presence for count in counts.values()],
            dtype=rows.dtype,
            device=rows.device,
        )
        rows[:, index] -= amount
    stop_ids = None
    if params.min_new_tokens > 0:
        stop_ids = torch.tensor(sorted(stop_tokens(req)), device=rows.device)
    for node in range(len(tokens)):
        path: Counter[int] = Counter()
        walk = node
        while walk > 0:
            path[tokens[walk]] += 1
            walk = parents[walk]
        if walk == -1:
            continue
        if frequency or presence:
            for token, count in path.items():
                rows[node, token] -= frequency * count + (0.0 if token in counts else presence)
        if stop_ids is not None and len(req.output_ids) + path.total() < params.min_new_tokens:
            rows[node, stop_ids] = float("-inf")


def stop_tokens(req: Any) -> set[int]:
    """The ids that end a request, as SGLang's own min-new-tokens penalizer collects them."""
    return (
        set(req.sampling_params.stop_token_ids or ())
        | set(req.tokenizer.additional_stop_token_ids or ())
        | {req.tokenizer.eos_token_id}
    )
