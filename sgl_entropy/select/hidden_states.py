"""One pass of texts and their noisy views through the target, reduced at once to what is needed.

Only each text's curvature and each view's pooled vector are kept of a hidden state: [hidden states,
n, q, d] float32, 150 MB for 128 texts of 16 views on a model of 30 layers of 576. More than
``HELD_BYTES`` go into a temporary file, so that memory does not grow with the texts.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgl_entropy.select.curvature import mean_turn
from sgl_entropy.select.rows import pooled_rows, unit_rows
from sgl_entropy.target.batches import by_length, padded
from sgl_entropy.target.plain import PlainTarget

# Enough for a fast matmul; memory holds all hidden states of a batch at once.
BATCH_TOKENS = 1024
# Bytes of pooled vectors that stay in memory.
HELD_BYTES = 1 << 28
# Every row of a batch has a cache of its own, however short it is.
BATCH_ROWS = 32


@dataclass(frozen=True)
class MeasuredLayers:
    """What the metrics need of hidden states 0 .. L; on the CPU.

    Attributes:
        curvature: float64 [L + 1, n], radians, of the clean texts.
        pooled: float32 [L + 1, n, q, d], x_ij of the noisy views.
    """

    curvature: Tensor
    pooled: Tensor


def hidden_states(
    target: PlainTarget, texts: Sequence[Sequence[int]]
) -> tuple[list[Tensor], Tensor]:
    """Hidden states 0 .. L, the last one before the final norm.

    Returns:
        L + 1 tensors [batch, longest, d], right-padded, and the lengths, int64 [batch]; all on
        the target's device.
    """
    ids, lengths = padded(target, texts)
    out = target.forward(
        ids,
        torch.zeros_like(lengths),
        target.new_cache(len(texts)),
        tap_layers=range(target.num_layers),
    )
    return [F.embedding(ids, target.embedding), *out.taps], lengths


@torch.inference_mode()
def measure(
    target: PlainTarget,
    texts: Sequence[Sequence[int]],
    views: Sequence[Sequence[Sequence[int]]],
    told: Callable[[int, int], None] | None = None,
) -> MeasuredLayers:
    """Run everything through the target.

    Args:
        texts: token ids of each of n texts, at least 3.
        views: token ids of each text's q noisy views, at least 1.
        told: called with the number of tokens that are done, and of all.
    """
    states, n, q = target.num_layers + 1, len(texts), len(views[0])
    curvature = torch.zeros((states, n), dtype=torch.float64)
    pooled = room(states, n * q, target.hidden_size)
    flat = [view for text in views for view in text]
    done, total = 0, sum(map(len, texts)) + sum(map(len, flat))
    for clean, rows_of in ((True, texts), (False, flat)):
        for group in by_length([len(text) for text in rows_of], BATCH_ROWS, BATCH_TOKENS):
            hidden, lengths = hidden_states(target, [rows_of[i] for i in group])
            for state, rows in enumerate(hidden):
                unit = unit_rows(rows, lengths)
                if clean:
                    curvature[state, group] = mean_turn(unit, lengths).cpu()
                else:
                    pooled[state, group] = pooled_rows(unit, lengths).float().cpu()
            done += int(lengths.sum())
            if told is not None:
                told(done, total)
    return MeasuredLayers(curvature, pooled.view(states, n, q, -1))


def room(*shape: int) -> Tensor:
    """float32 zeros of that shape: in memory, or mapped from a file that has no name any more.

    Raises:
        ValueError: the disk has not so much room.
    """
    size = math.prod(shape)
    if 4 * size <= HELD_BYTES:
        return torch.zeros(shape)
    with tempfile.NamedTemporaryFile(prefix="sgl-entropy-select-") as file:
        try:
            # Now, not by a signal when a page is written.
            os.posix_fallocate(file.fileno(), 0, 4 * size)
        except OSError as error:
            raise ValueError(
                f"--count, --views: pooled vectors take {4 * size / 1e9:.1f} GB, and "
                f"{tempfile.gettempdir()} refuses them ({error.strerror}): take fewer, or set "
                "TMPDIR to another folder"
            ) from None
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.float32).view(shape)
