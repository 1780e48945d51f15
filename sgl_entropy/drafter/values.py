"""Checks of values, which headers cannot show: NaN, infinity, vocabulary maps out of range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sgl_entropy.checkpoint.findings import Finding
from sgl_entropy.drafter.config import DrafterConfig

if TYPE_CHECKING:
    import torch


def draft_to_target_ids(d2t: torch.Tensor) -> torch.Tensor:
    """Target ids of the draft vocabulary, int64 [Vd]: draft id + d2t."""
    import torch

    return torch.arange(d2t.shape[0], dtype=torch.int64, device=d2t.device) + d2t


def validate_values(config: DrafterConfig, tensors: Mapping[str, torch.Tensor]) -> list[Finding]:
    """Findings about the values of tensors whose shapes and dtypes already fit ``config``.

    ``d2t`` must send every draft id to its own target id in ``0..vocab_size-1``; ``t2d``, where
    it is given, must mark exactly those ids.
    """
    findings: list[Finding] = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = int((~tensor.isfinite()).sum())
        if bad:
            nans = int(tensor.isnan().sum())
            text = f"{name}: {nans:,} NaN and {bad - nans:,} infinite of {tensor.numel():,} values"
            findings.append(Finding("error", name, text, "the checkpoint is broken, export again"))
    if "d2t" in tensors:
        findings += _check_vocabulary_maps(config, tensors["d2t"], tensors.get("t2d"))
    elif "t2d" in tensors and not bool(tensors["t2d"].all()):
        text = "t2d: marks only a part of the vocabulary, but there is no d2t for it"
        findings.append(Finding("error", "t2d", text))
    return findings


def _check_vocabulary_maps(
    config: DrafterConfig, d2t: torch.Tensor, t2d: torch.Tensor | None
) -> list[Finding]:
    import torch

    ids = draft_to_target_ids(d2t)
    outside = ((ids < 0) | (ids >= config.vocab_size)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        text = (
            f"d2t: {len(outside):,} draft ids lead outside the vocabulary of "
            f"{config.vocab_size:,} (draft id {first} to token {int(ids[first])})"
        )
        return [Finding("error", "d2t", text, "d2t[i] is the target id minus i")]
    findings: list[Finding] = []
    counts = torch.bincount(ids, minlength=config.vocab_size)
    repeated = len(ids) - int((counts > 0).sum())
    if repeated:
        text = f"d2t: {repeated:,} draft ids lead to a token that another one has"
        findings.append(Finding("error", "d2t", text, "d2t[i] is the target id minus i"))
    if t2d is not None:
        marked = torch.zeros(config.vocab_size, dtype=torch.bool, device=ids.device)
        marked[ids] = True
        differing = int((marked != t2d).sum())
        if differing:
            text = f"t2d: disagrees with d2t about {differing:,} tokens"
            fix = "t2d[v] is true exactly for the target ids i + d2t[i]"
            findings.append(Finding("error", "t2d", text, fix))
    return findings


def complete_vocabulary_maps(
    config: DrafterConfig, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Add what a checkpoint may leave out: ``d2t`` of the whole vocabulary, ``t2d`` of any."""
    import torch

    out = dict(tensors)
    if "d2t" not in out:
        out["d2t"] = torch.zeros(config.draft_vocab_size, dtype=torch.int64)
    if "t2d" not in out:
        out["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool, device=out["d2t"].device)
        out["t2d"][draft_to_target_ids(out["d2t"])] = True
    return out
