"""What the target says at given hidden states: logits, the most likely token, entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.target.plain import PlainTarget

# Rows whose logits over the whole vocabulary are in memory at once, on a CPU and elsewhere.
_LOGIT_ROWS, _DEVICE_LOGIT_ROWS = 128, 1024


def judge(target: PlainTarget, final: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy (nats) and most likely token at each row of final states [n, d]: each [n]."""
    parts = [(shannon_entropy(z), likeliest(target, rows, z)) for rows, z in by_rows(target, final)]
    return torch.cat([entropy for entropy, _ in parts]), torch.cat([best for _, best in parts])


def by_rows(target: PlainTarget, final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(final states, their logits) of a few rows at a time: logits of a whole prefill would take
    a gigabyte."""
    few = _LOGIT_ROWS if final.device.type == "cpu" else _DEVICE_LOGIT_ROWS
    for rows in torch.split(final, few):
        yield rows, target.logits(rows)


def likeliest(target: PlainTarget, final: Tensor, logits: Tensor) -> Tensor:
    """The most likely token of each row: int64 [n].

    In bfloat16 one row in fifty has several highest logits, and argmax takes the lowest id: the
    eight likeliest tokens are scored again in float32 (ours).

    Args:
        final: [n, d] after the final norm; logits: [n, vocab] of it.
    """
    if logits.dtype != torch.bfloat16:
        return logits.argmax(-1)
    few = logits.topk(min(8, logits.shape[-1]), dim=-1).indices
    again = torch.einsum("nkd,nd->nk", target.head[few].float(), final.float())
    best = few.gather(-1, again.argmax(-1, keepdim=True))
    return best.squeeze(-1)
