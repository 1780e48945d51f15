"""Rank pairs of layers by a closed-form drafter instead of trained ones. (Ours.)

Curvature and LiDAR judge each layer by itself. A drafter has another task: from the states of two
layers at one token and the next token's embedding it predicts the target's final hidden state
there. Kernel ridge regression solves that in closed form, with the kernel

    k(row, row') = (1 + f . f') (1 + e . e')

of a pair's states f, standardised and side by side, and the embeddings e. It weighs all products
of a state's and an embedding's entry, as EDFuse's gate does. Pairs are ranked by the share of the
final states' variance that is explained on texts that were not learned from.

Only pairs with one of the few layers that explain most alone are tried. Memory: 16 MB of kernel a
layer, whatever the hidden size, and the rows (mapped from a file where they are many).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.select.hidden_states import BATCH_ROWS, BATCH_TOKENS, room
from sgl_entropy.target.batches import by_length, padded
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.verify.resampling import resampled_sums, seeded

# Rows that are learned from and held out, spread evenly over the texts.
LEARNED, HELD_OUT = 1536, 1024
# Of the texts, the share that is held out.
_HELD_OUT_SHARE = 0.4
# Of the identity, beside kernels whose diagonal is about 4.
_STRENGTH = 1e-3
# Layers whose pairs with all others are tried.
LEADERS = 4
# Directions of the final state that are predicted: all, or so many drawn at random.
_DIRECTIONS = 1024


@dataclass(frozen=True)
class ProbeRows:
    """Inputs and outputs of the regression; rows that are learned from come first.

    Attributes:
        taps: float32 [layers, rows, d], outputs of decoder layers 0 .. L - 2 at a token.
        embeds: float32 [rows, d], of the next token.
        final: float32 [rows, d], of the next token, after the final norm.
        texts: int64 [rows], the text that each comes from.
        learned: how many are learned from. The others' texts are held out.
    """

    taps: Tensor
    embeds: Tensor
    final: Tensor
    texts: Tensor
    learned: int


@dataclass(frozen=True)
class Probe:
    """What each layer and pair of layers explains of held-out final states' variance.

    Attributes:
        alone: of decoder layers 0 .. L - 2; at most 1.
        pairs: of the tried pairs (rising layer ids), the best first.
        share: of the resamples of the held-out texts in which the best pair wins.
        learned, held_out: rows.
    """

    alone: list[float]
    pairs: dict[tuple[int, int], float]
    share: float
    learned: int
    held_out: int

    @property
    def best(self) -> tuple[int, int]:
        """The pair that explains most."""
        return next(iter(self.pairs))


@torch.inference_mode()
def collect(
    target: PlainTarget, texts: Sequence[Sequence[int]], learned: int, held_out: int
) -> ProbeRows:
    """Rows of ``texts`` (token ids, at least 4 each), those of the last ones held out.

    A text's first token is left out: much attention goes to it, and its states are far larger.
    """
    count = len(texts)
    back = max(1, round(_HELD_OUT_SHARE * count))
    front = count - back
    most = [-(-learned // front)] * front + [-(-held_out // back)] * back
    at = [_spread(len(text) - 2, few) for text, few in zip(texts, most, strict=True)]
    starts = torch.tensor([0, *map(len, at)]).cumsum(0).tolist()
    layers, rows, d = target.num_layers - 1, starts[-1], target.hidden_size
    taps = room(layers, rows, d)
    embeds, final = torch.zeros((2, rows, d))
    for group in by_length([len(text) for text in texts], BATCH_ROWS, BATCH_TOKENS):
        ids, lengths = padded(target, [texts[i] for i in group])
        out = target.forward(
            ids,
            torch.zeros_like(lengths),
            target.new_cache(len(group)),
            tap_layers=range(layers),
        )
        for row, i in enumerate(group):
            to, here = slice(starts[i], starts[i + 1]), at[i].to(target.device)
            for layer, tap in enumerate(out.taps):
                taps[layer, to] = tap[row, here].float().cpu()
            embeds[to] = F.embedding(ids[row, here + 1], target.embedding).float().cpu()
            final[to] = out.final[row, here + 1].float().cpu()
    numbers = torch.arange(count).repeat_interleave(torch.tensor(list(map(len, at))))
    return ProbeRows(taps, embeds, final, numbers, starts[front])


def _spread(last: int, most: int) -> Tensor:
    """At most so many of 1 .. ``last``, evenly apart."""
    if last <= most:
        return torch.arange(1, last + 1)
    return torch.linspace(1, last, most).round().long()


@torch.inference_mode()
def probe(
    rows: ProbeRows,
    resamples: int,
    seed: int,
    also: Collection[tuple[int, int]] = (),
    told: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> Probe:
    """Every layer alone, then the best ones with every other.

    Args:
        resamples: of the held-out texts, for ``Probe.share``.
        also: other pairs to try, rising.
        told: called with the number of pairs that were tried, and of all.
        device: where kernels are computed and solved.
    """
    learned, layers = rows.learned, len(rows.taps)
    kernels = [kernel(tap.to(device), learned) for tap in rows.taps]
    outputs = _directions(rows.final, seed).to(device)
    beside = kernel(rows.embeds.to(device), learned)
    _, text = torch.unique(rows.texts[learned:], return_inverse=True)

    def explained(pair: Sequence[int]) -> Tensor:
        """[held-out texts, 2]: squares that are left, and all there are."""
        states = torch.stack([kernels[layer] for layer in pair]).mean(0)
        squares = left_and_all((1 + states) * (1 + beside), outputs, learned).cpu()
        return torch.zeros((int(text.max()) + 1, 2)).double().index_add_(0, text, squares.double())

    alone = [_share(explained([layer]).sum(0)) for layer in range(layers)]
    leaders = sorted(range(layers), key=lambda layer: (-alone[layer], layer))[:LEADERS]
    pairs = {(min(a, b), max(a, b)) for a in leaders for b in range(layers) if a != b}
    todo = sorted(pairs.union(also))
    tried = {}
    for pair in todo:
        tried[pair] = explained(pair)
        if told is not None:
            told(len(tried), len(todo))
    ranked = sorted(tried, key=lambda pair: (-_share(tried[pair].sum(0)), pair))
    return Probe(
        alone,
        {pair: _share(tried[pair].sum(0)) for pair in ranked},
        _wins(torch.stack([tried[pair] for pair in ranked]), resamples, seed),
        learned,
        len(rows.final) - learned,
    )


def kernel(rows: Tensor, learned: int) -> Tensor:
    """Inner products of all rows [n, d] with the first ``learned``, [n, learned], of columns that
    are standardised by those; about 1 on the diagonal."""
    first = rows[:learned]
    scaled = (rows - first.mean(0)) / first.std(0).clamp_min(1e-6)
    return scaled @ scaled[:learned].T / rows.shape[1]


def left_and_all(products: Tensor, outputs: Tensor, learned: int) -> Tensor:
    """Kernel ridge regression of ``outputs`` [n, k] from ``products`` [n, learned]; the first rows
    are learned from. [rest, 2]: of each other row the squares left, and those about the mean.
    """
    own = products[:learned]
    ridge = _STRENGTH * learned * torch.eye(learned, dtype=own.dtype, device=own.device)
    mean = outputs[:learned].mean(0)
    weights = torch.cholesky_solve(outputs[:learned] - mean, torch.linalg.cholesky(own + ridge))
    rest = outputs[learned:] - mean
    left: Tensor = rest - products[learned:] @ weights
    return torch.stack([left.pow(2).sum(1), rest.pow(2).sum(1)], dim=1)


def _directions(final: Tensor, seed: int) -> Tensor:
    """[rows, d], or as much of it as ``_DIRECTIONS`` random directions see."""
    d = final.shape[1]
    if d <= _DIRECTIONS:
        return final
    chance = torch.Generator().manual_seed(seed)
    outputs: Tensor = final @ torch.randn((d, _DIRECTIONS), generator=chance) / d**0.5
    return outputs


def _share(squares: Tensor) -> float:
    left, whole = squares.tolist()
    return 1 - left / whole if whole else 0.0


def _wins(squares: Tensor, resamples: int, seed: int) -> float:
    """How often the first pair of [pairs, texts, 2] leaves least, of so many resamples."""
    left = resampled_sums(squares[:, :, 0].T, resamples, seeded(seed))
    return float((left.argmin(1) == 0).double().mean())
