"""Soft cross-entropy through the draft head: the logits never outlive their row block.

Loss of a row: -sum_v p(v) log q(v) with p the target's softmax restricted to the draft vocabulary
(SPEC: EDTrain) and q the drafter's softmax. Both passes are done at once, because the gradient of
the logits is simply q - p; keeping [rows, vocabulary] tensors for autograd would double the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, working: Tensor, target: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        x = hidden.to(working.dtype)
        logits = (x @ working.T).float()
        best = logits.argmax(-1)
        norm = logits.logsumexp(-1, keepdim=True)
        loss = (norm.squeeze(-1) - (logits * target).sum(-1)).sum() * scale
        grad = logits.sub_(norm).exp_().sub_(target).mul_(scale).to(working.dtype)
        ctx.save_for_backward(
            (grad @ working).to(hidden.dtype) if ctx.needs_input_grad[0] else None,
            (grad.T @ x).to(weight.dtype) if ctx.needs_input_grad[1] else None,
        )
        ctx.mark_non_differentiable(best)
        return loss, best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        outer = grads[0]
        return (
            None if hidden is None else hidden * outer,
            None if weight is None else weight * outer,
            None,
            None,
            None,
        )


def soft_cross_entropy(
    hidden: Tensor, weight: Tensor, working: Tensor, target: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Sum over rows of the soft cross-entropy, times ``scale``.

    Args:
        hidden: [rows, d], after the final norm.
        weight: [vocab, d], the head's master weight, which gets the gradient.
        working: ``weight`` in the dtype of the matmuls.
        target: [rows, vocab], rows that sum to 1 (any float dtype).

    Returns:
        The loss (scalar), and each row's most likely draft id (int64 [rows]).
    """
    loss, best = _SoftCrossEntropy.apply(hidden, weight, working, target, scale)  # type: ignore[no-untyped-call]
    return loss, best
