"""Where training starts: tap scales, and weights solved for instead of drawn (ours).

From random weights, gradient descent spends most of a small budget on a solution that least squares
gives at once. So ``fc`` starts as the ridge regression of the target's next final hidden state on
the scaled taps, and the head as the target's own rows. EDSD has no residual and multiplies token
and feature, which learns slowly from random weights. Its gate and up therefore start with a
direction along which every feature (every token embedding) has a component of about 1; this acts
like the biases that the published form lacks. ``down`` starts as the ridge regression from the
products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.train.loss.unrolled import TargetSide
from sgl_entropy.train.samples.shards import Sample

# Steepness: SiLU(2 + x) is nearly linear in x with some curvature left to learn with.
_GATE_BIAS = 2.0
_HEAD_SHRINK = 0.5


@dataclass(frozen=True)
class AnswerRows:
    """The rows of one answer: taps [n, taps * d], and at the next position tokens int64 [n] and the
    target's final states [n, d]."""

    taps: Tensor
    tokens: Tensor
    final: Tensor

    @classmethod
    def of(cls, sample: Sample, name: str = "a sample") -> AnswerRows:
        """The rows that draft: from the prompt's last one on.

        Raises:
            ValueError: a value that is not finite, which would spoil every weight; says where.
        """
        first, rows = sample.prompt_length - 1, sample.answer_rows
        here, following = slice(first, first + rows), slice(first + 1, first + 1 + rows)
        taps, final = sample.features[here], sample.final[following]
        for part, values in (("features", taps), ("final states", final)):
            if not bool(values.isfinite().all()):
                raise ValueError(
                    f"{name}: its {part} are not finite, so that no start can be solved from them. "
                    f"Compute them anew (remove the shard and run `train features` again), in "
                    f"float32 (generate.dtype) if the target itself computes such values"
                )
        # Clones: a view would keep the prompt's features in memory too.
        return cls(taps.clone(), sample.tokens[following].clone(), final.clone())

    def to(self, device: torch.device) -> AnswerRows:
        """The same there."""
        return AnswerRows(self.taps.to(device), self.tokens.to(device), self.final.to(device))


def tap_scales(answers: Sequence[AnswerRows]) -> Tensor:
    """Root mean square of each tapped channel: float32 [taps * d].

    Channels differ a thousandfold; dividing by their scale in training and folding the factor
    into ``fc`` at export leaves the published form as it is.
    """
    squares = torch.stack([rows.taps.float().pow(2).sum(0) for rows in answers]).sum(0)
    scale: Tensor = (squares / sum(len(rows.taps) for rows in answers)).sqrt()
    return scale.clamp_min(1e-3 * float(scale.median()))


class Ridge:
    """Ridge regression of y on x on ``device``; rows are added in portions of any size."""

    def __init__(self, columns: int, targets: int, device: torch.device | None = None) -> None:
        self.rows = 0
        self.gram = torch.zeros((columns, columns), dtype=torch.float64, device=device)
        self.cross = torch.zeros((columns, targets), dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """More rows: x [rows, columns], y [rows, targets], float32."""
        self.rows += len(x)
        self.gram += x.T @ x
        self.cross += x.T @ y

    def solve(self, strength: float = 1e-3) -> Tensor:
        """W [targets, columns] minimising |x W' - y|^2 + strength * mean(diag x'x) |W|^2."""
        gram = self.gram.clone()
        gram.diagonal().add_(strength * gram.diagonal().mean())
        solution: Tensor = torch.linalg.solve(gram, self.cross)
        return solution.T.float()

    @property
    def size(self) -> float:
        """Root mean square length of a row of x."""
        return math.sqrt(float(self.gram.trace()) / self.rows)


@torch.no_grad()
def initialise(
    drafter: Drafter,
    side: TargetSide,
    answers: Sequence[AnswerRows],
    seed: int,
    *,
    solved: bool = True,
) -> None:
    """Set the starting weights of ``drafter`` in place, and move it to where ``side`` is: the
    regressions of a large target are work for a GPU.

    Args:
        drafter: on the CPU, so that random numbers do not depend on the device.
        answers: the regressions' data; a few answers at a time are moved to the device.
        solved: False leaves ``fc`` and EDFuse at their random start (for comparison).
    """
    torch.manual_seed(seed)
    d = drafter.config.hidden_size
    for name, weight in drafter.named_parameters():
        if weight.dim() == 2:
            weight.normal_(std=weight.shape[1] ** -0.5)
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            weight.mul_(0.2)
    device = side.tap_scale.device
    drafter.to(device)
    taps = Ridge(len(side.tap_scale), d, device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    for rows in answers:
        here = rows.to(device)
        y = here.final.float()
        taps.add(here.taps.float() / side.tap_scale, y)
        squares += y.double().pow(2).sum()
    size = math.sqrt(float(squares) / (taps.rows * d))
    drafter.lm_head.weight.copy_(side.head)
    drafter.norm.weight.fill_(size * _HEAD_SHRINK)
    if not solved:
        return
    drafter.fc.weight.copy_(taps.solve() / size)
    if drafter.config.algorithm == "EDSD":
        _initialise_fuse(drafter, side, answers, size)


def _initialise_fuse(
    drafter: Drafter, side: TargetSide, answers: Sequence[AnswerRows], size: float
) -> None:
    d, fuse, device = drafter.config.hidden_size, drafter.edfuse, side.tap_scale.device

    def inputs() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in answers:
            here = rows.to(device)
            f = F.linear(here.taps.float() / side.tap_scale, drafter.fc.weight)
            e = drafter.normed(F.embedding(here.tokens, side.embedding).float())
            yield f, e, here.final.float() / size

    features, embeds = Ridge(d, 1, device), Ridge(d, 1, device)
    for f, e, _ in inputs():
        ones = torch.ones((len(f), 1), device=device)
        features.add(f, ones)
        embeds.add(e, ones)
    # Random parts with unit variance on the data, so that products carry both sides.
    for matrix, data, bias in (
        (fuse.gate_proj.weight, features, _GATE_BIAS),
        (fuse.up_proj.weight, embeds, 1.0),
    ):
        matrix.mul_(d**0.5 / data.size)
        matrix.add_(bias * data.solve())
    products = Ridge(fuse.down_proj.weight.shape[1], d, device)
    for f, e, y in inputs():
        missing = y - f if drafter.config.fuse_residual else y
        products.add(F.silu(fuse.gate_proj(f)) * fuse.up_proj(e), missing)
    fuse.down_proj.weight.copy_(products.solve(strength=1e-2))


@torch.no_grad()
def start_from(drafter: Drafter, earlier: Drafter, tap_scale: Tensor) -> None:
    """Copy the weights of an exported drafter, its ``fc`` unfolded for ``tap_scale``.

    Args:
        earlier: of the same sizes, taps and draft vocabulary; its ``fc`` takes unscaled taps.
        tap_scale: float32 [taps * d], by which the taps are divided in this training.

    Raises:
        ValueError: sizes, taps or draft vocabulary differ; all that differ are named.
    """
    wanted = drafter.config.to_dict(torch_dtype="float32")
    given = earlier.config.to_dict(torch_dtype="float32")
    differ = sorted(key for key in {*wanted, *given} if wanted.get(key) != given.get(key))
    if not differ and drafter.config.fuse_size != earlier.config.fuse_size:
        differ = ["fuse_size"]
    if not differ and not torch.equal(drafter.d2t, earlier.d2t):
        differ = ["the draft vocabulary"]
    if differ:
        raise ValueError(f"fit.start: the drafter to start from differs in {', '.join(differ)}")
    drafter.load_state_dict(earlier.state_dict())
    drafter.fc.weight.mul_(tap_scale)
