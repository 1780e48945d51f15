"""Distributions that requests sample from, and draws from them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class SamplingSettings(Protocol):
    """How the b requests of a batch sample: of SGLang's ``SamplingBatchInfo``, what is read here.

    Attributes:
        temperatures: [b, 1]; top_ks, top_ps, min_ps: [b]. Temperature 0 arrives as top-k 1.
        need_top_p_sampling, need_top_k_sampling, need_min_p_sampling: some request filters by it.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    need_top_p_sampling: bool
    need_top_k_sampling: bool
    need_min_p_sampling: bool


def is_greedy(info: SamplingSettings) -> Tensor:
    """[b] bool: requests that take the likeliest token."""
    return info.top_ks == 1


def request_probs(logits: Tensor, info: SamplingSettings, request: Tensor) -> Tensor:
    """The distributions that requests sample from: temperature, then top-k, top-p and min-p.

    Args:
        logits: [rows, vocabulary] after bias, penalties and grammar masks.
        request: [rows] the request of each.

    Returns:
        [rows, vocabulary], each row with sum 1. The filters are those of SGLang's
        ``top_k_top_p_min_p_sampling_from_probs_torch``; tests compare both with one plain law.
    """
    probs = torch.softmax(logits / info.temperatures[request], dim=-1)
    if not (info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling):
        return probs
    ordered, ids = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(probs.shape[-1], device=probs.device)
    drop = (rank >= info.top_ks[request].unsqueeze(1)) | (
        before > info.top_ps[request].unsqueeze(1)
    )
    if info.need_min_p_sampling:
        drop |= ordered < ordered[:, :1] * info.min_ps[request].unsqueeze(1)
    kept = torch.zeros_like(probs).scatter(-1, ids, ordered.masked_fill(drop, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def draw(probs: Tensor, coins: Tensor) -> Tensor:
    """One token of each row by inversion.

    Args:
        probs: [rows, vocabulary], not necessarily of sum 1; coins: [rows] in [0, 1).

    Returns:
        [rows] int64, never a token of probability 0.
    """
    edges = probs.double().cumsum(-1)
    at = torch.searchsorted(edges, (coins.double() * edges[:, -1]).unsqueeze(1), right=True)
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(at.squeeze(1), last)


def make_drawable(logits: Tensor) -> list[bool] | None:
    """Set rows that no token can be drawn from to 0, in place.

    Such a row holds NaN or +inf, or nothing but -inf; -inf alone is a mask. One pass: the maximum
    of a row is a finite number exactly if the row is sound.

    Args:
        logits: [rows, vocabulary].

    Returns:
        Which rows were set; None = all are sound.
    """
    broken = ~torch.isfinite(logits.amax(-1))
    if not bool(broken.any()):
        return None
    logits[broken] = 0.0
    return broken.tolist()
