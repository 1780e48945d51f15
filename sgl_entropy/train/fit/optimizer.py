"""The optimizer: AdamW, or Muon for the layer's matrices and AdamW for the rest.

Muon (Jordan and others, 2024) moves a matrix along its momentum with all singular values set to
about one, so that rare directions of the gradient learn as fast as frequent ones. torch's own Muon
works in bfloat16, which takes twenty times as long as float32 on a CPU without such instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.train.settings.fit import FitSettings

# The quintic of Jordan and others: after five rounds singular values lie between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
# With all singular values one, an entry's size is one over the root of the longer side; AdamW's
# updates have about this size (Liu and others, 2025). Scaled to it, both learn at the same rate.
_ADAMW_SIZE = 0.2


def orthogonalised(matrix: Tensor) -> Tensor:
    """``matrix`` with its singular values set to about 1; values near zero stay near zero.

    Newton-Schulz iteration: only matmuls, of the shorter side where possible.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    even: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return even


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised and scaled to the size of AdamW's updates; AdamW's decay.

    Args:
        groups: parameters, all of two dimensions; each group's ``lr`` and ``weight_decay``.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalised(weight.grad.lerp(mean, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * _ADAMW_SIZE * max(weight.shape) ** 0.5)


class Optimizers:
    """The optimizers of one drafter, used as one. Each group of weights learns at ``factor`` times
    the rate.

    AdamW always keeps ``fc`` and EDFuse, which start solved, the head, whose rows are tokens, and
    all vectors.
    """

    def __init__(self, drafter: Drafter, given: FitSettings) -> None:
        kinds: dict[tuple[bool, float, float], list[Tensor]] = {}
        for name, weight in drafter.named_parameters():
            factor, muon = 1.0, given.optimizer == "muon" and weight.dim() == 2
            if name.startswith(("fc.", "edfuse.")):
                factor, muon = given.solved_rate, False
            elif name.startswith("lm_head."):
                factor, muon = given.head_rate, False
            decays = weight.dim() == 2 and not name.startswith("lm_head.")
            decay = given.weight_decay if decays else 0.0
            kinds.setdefault((muon, factor, decay), []).append(weight)

        def groups(wanted: bool) -> list[dict[str, Any]]:
            return [
                {"params": weights, "factor": factor, "weight_decay": decay}
                for (muon, factor, decay), weights in kinds.items()
                if muon == wanted
            ]

        rate = given.learning_rate
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups(False), lr=rate, betas=(0.9, 0.95), fused=True)
        ]
        if groups(True):
            self.all.append(Muon(groups(True), rate))

    def set_rate(self, rate: float) -> None:
        """Set the rate of the next step; each group multiplies it by its factor."""
        for one in self.all:
            for group in one.param_groups:
                group["lr"] = rate * group["factor"]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.all:
            one.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move the weights."""
        for one in self.all:
            one.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [one.state_dict() for one in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """From a checkpoint.

        Raises:
            ValueError: the states of other optimizers than these.
        """
        if len(states) != len(self.all) or any("param_groups" not in state for state in states):
            raise ValueError("the checkpoint holds the state of other optimizers")
        for one, state in zip(self.all, states, strict=True):
            one.load_state_dict(state)
