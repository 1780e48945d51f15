"""Where a training step's time goes: its functions on a stopwatch that never counts twice.

On a CPU every operation ends before the next begins, so wall time by function is exact; a part
that runs inside another is charged to itself alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.drafter.unroll import Unroll
from sgl_entropy.figures import plain_loop
from sgl_entropy.figures.plain_loop import Straightforward
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.loss import unrolled

# What is measured, in the order of a step.
PARTS = {
    "data": "reading samples, padding, labels",
    "fusion": "fc, embedding norm, EDFuse (or the two norms)",
    "attention": "projections and scores",
    "mlp": "the MLP, its norm and residual",
    "target": "the target's distribution; look-ups, bfloat16 copies",
    "head": "final norm, head, loss; in ours with their gradients",
    "backward": "the rest of backward",
    "optimizer": "clipping and AdamW",
    "rest": "everything else of the step",
}
# Something that holds a function, the function's name, its part.
Place = tuple[Any, str, str]


class Clock:
    """Seconds by part; parts may be nested."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what runs inside to ``name``, less the parts within."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """``function``, charged to ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def places(trainer: Fit | Straightforward) -> list[Place]:
    """The functions of ``trainer`` by part."""
    drafter: Drafter = trainer.drafter
    attention = drafter.midlayer.self_attn
    shared: list[Place] = [
        (drafter, "fuse_taps", "fusion"),
        (drafter, "mix", "fusion"),
        (drafter, "queries", "attention"),
        (drafter, "keys_values", "attention"),
        (attention.o_proj, "forward", "attention"),
        (drafter, "finish", "mlp"),
        (drafter.norm, "forward", "head"),
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "optimizer"),
        (trainer.optimizer, "step", "optimizer"),
        (trainer.optimizer, "zero_grad", "optimizer"),
    ]
    if isinstance(trainer, Fit):
        return [
            *shared,
            (trainer, "_batch", "data"),
            (Unroll, "__init__", "attention"),
            (Unroll, "advance", "attention"),
            (unrolled, "unrolled_loss", "target"),
            (unrolled, "soft_cross_entropy", "head"),
        ]
    return [
        *shared,
        (trainer, "_sample", "data"),
        (trainer, "_labels", "data"),
        (trainer, "_target", "target"),
        (plain_loop, "grouped_attention", "attention"),
        (trainer, "_head_loss", "head"),
    ]


@contextmanager
def timing(table: Sequence[Place]) -> Iterator[Clock]:
    """Time the functions of ``table`` inside this block."""
    clock = Clock()
    with ExitStack() as stack:
        for owner, name, part in table:
            stack.callback(_put_back, owner, name, vars(owner).get(name))
            setattr(owner, name, clock.timed(getattr(owner, name), part))
        yield clock


def _put_back(owner: Any, name: str, own: Any) -> None:
    if own is None:  # it came from the class
        delattr(owner, name)
    else:
        setattr(owner, name, own)
