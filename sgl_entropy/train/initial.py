"""Where training starts: tap scales, and weights solved for instead of drawn (ours).

Gradient descent from random weights spends most of a small budget on finding what least squares
finds at once. So ``fc`` starts as the ridge regression of the target's next final hidden state on
the scaled taps, and the head as the target's own rows. EDSD has no residual and multiplies token
and feature, which learns slowly from random weights: its gate and up start with a direction along
which every feature (every token embedding) measures about 1, which acts as the biases that the
published form does not have, and ``down`` starts as the ridge regression from the products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.drafter.model import Drafter
from sgl_entropy.train.objective import TargetSide
from sgl_entropy.train.store import Sample

# Steepness: SiLU(2 + x) is nearly linear in x with some curvature left to learn with.
_GATE_BIAS = 2.0
_HEAD_SHRINK = 0.5


def tap_scales(samples: Sequence[Sample]) -> Tensor:
    """Root mean square of each tapped channel, over answer rows: float32 [taps * d].

    Channels differ a thousandfold; dividing by their scale in training and folding the factor
    into ``fc`` at export leaves the published form as it is.
    """
    rows = torch.cat([s.features[s.prompt_length - 1 :] for s in samples]).float()
    scale: Tensor = rows.pow(2).mean(0).sqrt()
    return scale.clamp_min(1e-3 * float(scale.median()))


def ridge(x: Tensor, y: Tensor, strength: float = 1e-3) -> Tensor:
    """W [y columns, x columns] minimising |x W' - y|^2 + strength * mean(diag x'x) |W|^2."""
    gram = (x.T @ x).double()
    gram.diagonal().add_(strength * gram.diagonal().mean())
    solution: Tensor = torch.linalg.solve(gram, (x.T @ y).double())
    return solution.T.float()


@torch.no_grad()
def initialise(
    drafter: Drafter, side: TargetSide, samples: Sequence[Sample], seed: int, *, solved: bool = True
) -> None:
    """Set the starting weights of ``drafter`` in place.

    Args:
        samples: a few dozen samples whose answer rows the regressions are solved on.
        solved: False leaves ``fc`` and EDFuse at their random start (for comparison).
    """
    torch.manual_seed(seed)
    d = drafter.config.hidden_size
    for name, weight in drafter.named_parameters():
        if weight.dim() == 2:
            weight.normal_(std=weight.shape[1] ** -0.5)
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            weight.mul_(0.2)
    taps, tokens, wanted = [], [], []
    for s in samples:
        first, rows = s.prompt_length - 1, s.answer_rows
        taps.append(s.features[first : first + rows])
        tokens.append(s.tokens[first + 1 : first + 1 + rows])
        wanted.append(s.final[first + 1 : first + 1 + rows])
    x = torch.cat(taps).float() / side.tap_scale
    y = torch.cat(wanted).float()
    size = float(y.pow(2).mean().sqrt())
    y = y / size
    drafter.lm_head.weight.copy_(side.head)
    drafter.norm.weight.fill_(size * _HEAD_SHRINK)
    if not solved:
        return
    drafter.fc.weight.copy_(ridge(x, y))
    if drafter.config.algorithm != "EDSD":
        return
    f = F.linear(x, drafter.fc.weight)
    e = drafter.normed(F.embedding(torch.cat(tokens), side.embedding).float())
    ones = torch.ones(len(f), 1)
    fuse = drafter.edfuse
    # Random parts with unit variance on the data, so that products carry both sides.
    for matrix, data, bias in (
        (fuse.gate_proj.weight, f, _GATE_BIAS),
        (fuse.up_proj.weight, e, 1.0),
    ):
        matrix.mul_(d**0.5 / data.pow(2).sum(-1).mean().sqrt())
        matrix.add_(bias * ridge(data, ones))
    product = F.silu(fuse.gate_proj(f)) * fuse.up_proj(e)
    missing = y - f if drafter.config.fuse_residual else y
    fuse.down_proj.weight.copy_(ridge(product, missing, strength=1e-2))


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
    found = earlier.config.to_dict(torch_dtype="float32")
    differ = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    if not differ and drafter.config.fuse_size != earlier.config.fuse_size:
        differ = ["fuse_size"]
    if not differ and not torch.equal(drafter.d2t, earlier.d2t):
        differ = ["the draft vocabulary"]
    if differ:
        raise ValueError(f"fit.start: the drafter to start from differs in {', '.join(differ)}")
    drafter.load_state_dict(earlier.state_dict())
    drafter.fc.weight.mul_(tap_scale)
