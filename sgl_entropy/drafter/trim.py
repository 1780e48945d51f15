"""A trained drafter with a smaller draft vocabulary: rows of its head left out, nothing else.

The head is most of what a small drafter reads at every draft step. Tokens that are hardly ever
accepted cost as much as the others: on a CPU fewer of them serve faster, at a little lower
acceptance. (FR-Spec does so with a drafter of the whole vocabulary; the choice here is ours.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.drafter.checkpoint import load_tensors, save
from sgl_entropy.drafter.values import draft_to_target_ids


def most_frequent(own: Tensor, counts: Tensor, size: int) -> Tensor:
    """The ``size`` most frequent of the target ids ``own``, rising; of equal ones the lower id.

    Args:
        own: int64 [draft vocab], rising.
        counts: [vocab], how often each target token is written.

    Raises:
        DrafterError: ``size`` is not below what there is.
    """
    if not 0 < size < len(own):
        raise DrafterError(
            f"a smaller draft vocabulary holds 1 to {len(own) - 1} tokens, found {size}"
        )
    order = torch.argsort(counts[own], descending=True, stable=True)
    return own[order[:size]].sort().values


def trim(folder: Path, out: Path, kept: Tensor) -> None:
    """Write the drafter of ``folder`` with the target ids ``kept`` alone into ``out`` (new).

    Args:
        kept: int64 [size], rising, all of them in its draft vocabulary.

    Raises:
        DrafterError: no drafter there, a token that it does not have, or ``out`` is in the way.
    """
    config, tensors = load_tensors(folder)
    at = torch.isin(draft_to_target_ids(tensors["d2t"]), kept)
    if int(at.sum()) != len(kept):
        raise DrafterError(f"{len(kept) - int(at.sum())} tokens are not in the draft vocabulary")
    del tensors["t2d"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][at]
    tensors["d2t"] = (kept - torch.arange(len(kept))).to(tensors["d2t"].dtype)
    dtype = str(tensors["lm_head.weight"].dtype).removeprefix("torch.")
    save(out, replace(config, draft_vocab_size=len(kept)), tensors, dtype)
