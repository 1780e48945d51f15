"""Rotary position embeddings of the llama family: frequencies, their scalings, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.checkpoint.errors import DrafterError


def rotary_of(config: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """Base and scaling (None = plain) of a Hugging Face config.

    Newer transformers keep both in ``rope_parameters``, older ones in ``rope_theta`` and
    ``rope_scaling``.
    """
    newer = config.get("rope_parameters")
    rope = newer if isinstance(newer, Mapping) else {}
    theta = config.get("rope_theta") or rope.get("rope_theta") or 10000.0
    scaling = config.get("rope_scaling") or rope
    plain = not scaling or _kind(scaling) in (None, "default")
    return float(theta), None if plain else scaling


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("rope_type", scaling.get("type"))


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """Radians by which each pair of dimensions turns per position: float32 [head_dim / 2].

    Scalings are those that leave the attention's own scale alone: ``linear``, and ``llama3``,
    which slows long wavelengths down, keeps short ones, and blends between the two (Llama 3.1's
    reference code).

    Raises:
        DrafterError: another scaling, or a key of it is missing.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / theta**exponents
    if scaling is None:
        return plain
    try:
        if _kind(scaling) == "linear":
            return plain / float(scaling["factor"])
        if _kind(scaling) == "llama3":
            factor = float(scaling["factor"])
            low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
            turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
            kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
            return (1 - kept) * plain / factor + kept * plain
    except KeyError as error:
        raise DrafterError(f"rope_scaling {dict(scaling)} lacks {error}") from None
    raise DrafterError(
        f"rope_scaling {_kind(scaling)!r} is not known here (known: default, linear, llama3)"
    )


def rotary_tables(
    head_dim: int,
    theta: float,
    length: int,
    device: torch.device | str = "cpu",
    scaling: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 0 to ``length`` - 1, each float32 [length, head_dim]."""
    angles = torch.outer(
        torch.arange(length, dtype=torch.float32, device=device),
        frequencies(head_dim, theta, scaling).to(device),
    )
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last dimension ("neox" style), in float32.

    Args:
        x: [..., heads, head_dim]; cos, sin: [..., head_dim] of the rows' positions.
    """
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (wide * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)
