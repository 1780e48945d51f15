"""Grammar masks in plain torch, for engines without a CUDA kernel."""

from __future__ import annotations

import torch


def mask_logits(logits: torch.Tensor, bitmask: torch.Tensor) -> None:
    """Set the logits that a grammar forbids to -inf, in place.

    If no token is left in a row, one forbidden token is kept: nothing can be drawn from an empty
    distribution. The grammar refuses that token afterwards, and the engine ends this request
    alone.

    Args:
        logits: [rows, vocabulary] float, after penalties.
        bitmask: [rows, ceil(vocabulary / 32)] int32; bit t % 32 of word t // 32 allows token t.
    """
    shifts = torch.arange(32, dtype=torch.int32)
    for row, words in zip(logits, bitmask, strict=True):
        # All ones: a grammar that has ended, or a request without one.
        if bool((words == -1).all()):
            continue
        forbidden = (((words[:, None] >> shifts) & 1) == 0).flatten()[: row.shape[0]]
        row.masked_fill_(forbidden, float("-inf"))
        if bool(torch.isneginf(row).all()):
            row[forbidden.int().argmax()] = 0.0
