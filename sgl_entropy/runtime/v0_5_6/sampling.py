"""The target's token at every node of a draft, greedy or sampled, and distributions to draw from.

The CPU engine and the entropy modes verify by these; upstream's own kernels do elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.sampler import (
    sampling_from_probs_torch,
    top_k_top_p_min_p_sampling_from_probs_torch,
)

if TYPE_CHECKING:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


def target_tokens(logits: torch.Tensor, info: SamplingBatchInfo, nodes: int) -> torch.Tensor:
    """Draw the target's token at every draft node, independently (ours; see ``verify_tree``).

    The distribution is the one from which the same request samples without speculation: the
    engine's own filters, row for row. A walk uses each node's token at most once, so accepting
    the child that equals it and emitting it otherwise samples exactly.

    Args:
        logits: [b * nodes, vocabulary] after bias, penalties and grammar masks.
        info: the batch's settings, one entry a request.
        nodes: draft tokens a request, root included.

    Returns:
        [b * nodes] int64.
    """
    if info.is_all_greedy:
        return torch.argmax(logits, dim=-1)

    def expand(setting: torch.Tensor) -> torch.Tensor:
        return torch.repeat_interleave(setting, nodes, dim=0)

    probs = torch.softmax(logits / expand(info.temperatures), dim=-1)
    if not (info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling):
        tokens = sampling_from_probs_torch(probs)
    else:
        tokens = top_k_top_p_min_p_sampling_from_probs_torch(
            probs,
            expand(info.top_ks),
            expand(info.top_ps),
            expand(info.min_ps),
            info.need_min_p_sampling,
            None,
            None,
        )
    return tokens.long()


def is_greedy(info: SamplingBatchInfo) -> torch.Tensor:
    """[b] bool: requests that take the likeliest token (temperature 0 arrives here as top-k 1)."""
    return info.top_ks == 1


def request_probs(
    logits: torch.Tensor, info: SamplingBatchInfo, request: torch.Tensor
) -> torch.Tensor:
    """The distributions from which requests sample: temperature, then top-k, top-p and min-p.

    Args:
        logits: [rows, vocabulary] after bias, penalties and grammar masks.
        request: [rows] the request of each.

    Returns:
        [rows, vocabulary], filtered as upstream's ``top_k_top_p_min_p_sampling_from_probs_torch``
        does (a test compares the supports), each row with sum 1.
    """
    probs = torch.softmax(logits / info.temperatures[request], dim=-1)
    if not (info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling):
        return probs
    ordered, ids = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(probs.shape[-1], device=probs.device)
    drop = (rank >= info.top_ks[request].unsqueeze(1)) | (
        before > info.top_ps[request].unsqueeze(1)
    )
    if info.need_min_p_sampling:
        drop |= ordered < ordered[:, :1] * info.min_ps[request].unsqueeze(1)
    kept = torch.zeros_like(probs).scatter(-1, ids, ordered.masked_fill(drop, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def draw(probs: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """One token of each row by inversion.

    Args:
        probs: [rows, vocabulary], not necessarily of sum 1; coins: [rows] in [0, 1).

    Returns:
        [rows] int64, never a token of no probability.
    """
    edges = probs.double().cumsum(-1)
    at = torch.searchsorted(edges, (coins.double() * edges[:, -1]).unsqueeze(1), right=True)
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(at.squeeze(1), last)
