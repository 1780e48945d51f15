"""The target's token at every node of a draft, greedy or sampled.

The CPU engine and the entropy modes verify by it; elsewhere upstream's own kernels do.
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
