"""Fold the norm on token embeddings away (the EDSD paper: after training it is fused).

RMSNorm_emb(e) = gamma * e * s(e) with s(e) = 1 / sqrt(mean(e^2) + eps), so

    up(RMSNorm_emb(e)) = s(e) * (up * diag(gamma)) e

gamma goes into the columns of ``up`` and s is one scalar a token: a table of V float32. The
table of up(RMSNorm_emb(e)) for the whole draft vocabulary is ours, beyond the paper: it removes
the up GEMM from every draft step but the first, at the price of Vd x m numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgl_entropy.checkpoint.errors import DrafterError

if TYPE_CHECKING:
    import torch

DEFAULT_UP_TABLE_LIMIT = 256 << 20  # bytes
_CHUNK_ROWS = 8192


def fold_embedding_norm(up_weight: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """``up`` [m, d] with gamma [d] multiplied into its columns.

    The result is float32 (float64 for float64 inputs). For bfloat16 and float16 weights it is
    exact: the product of two such significands fits float32's 24 bits.

    Raises:
        DrafterError: shapes that do not fit.
    """
    if up_weight.dim() != 2 or tuple(gamma.shape) != (up_weight.shape[1],):
        raise DrafterError(
            f"cannot fold: up is {list(up_weight.shape)}, so embnorm must be "
            f"[{up_weight.shape[-1]}], found {list(gamma.shape)}"
        )
    kind = _compute_dtype(up_weight, gamma)
    return up_weight.to(kind) * gamma.to(kind)


def inverse_rms_table(embedding: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(mean(e^2) + eps) of every token: float32 [V] from embeddings [V, d].

    Computed in float32 (float64 for float64 embeddings), a few thousand rows at a time: no
    second embedding matrix is held.
    """
    import torch

    kind = _compute_dtype(embedding)
    out = torch.empty(embedding.shape[0], dtype=torch.float32, device=embedding.device)
    for start in range(0, embedding.shape[0], _CHUNK_ROWS):
        rows = embedding[start : start + _CHUNK_ROWS].to(kind)
        out[start : start + _CHUNK_ROWS] = rows.square().mean(dim=-1).add(eps).rsqrt()
    return out


def up_table_bytes(draft_vocab_size: int, fuse_size: int, bytes_per_value: int) -> int:
    """Exact bytes of the table [Vd, m]."""
    return draft_vocab_size * fuse_size * bytes_per_value


@dataclass(frozen=True)
class UpTablePlan:
    """Whether the up table is used, its exact size, and one line that says so."""

    num_bytes: int
    enabled: bool
    message: str


def plan_up_table(
    draft_vocab_size: int,
    fuse_size: int,
    bytes_per_value: int,
    *,
    limit: int = DEFAULT_UP_TABLE_LIMIT,
) -> UpTablePlan:
    """Decide by size; above ``limit`` bytes the table stays off (SPEC: off by default there)."""
    size = up_table_bytes(draft_vocab_size, fuse_size, bytes_per_value)
    shape = f"{draft_vocab_size:,} x {fuse_size:,} x {bytes_per_value} bytes = {size:,} bytes"
    if size <= limit:
        return UpTablePlan(size, True, f"up table: {shape}, within the limit of {limit:,}")
    text = f"up table: {shape}, above the limit of {limit:,}: off, the up GEMM runs instead"
    return UpTablePlan(size, False, text)


def up_table(
    folded_up: torch.Tensor,
    embedding: torch.Tensor,
    inverse_rms: torch.Tensor,
    target_ids: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    limit: int = DEFAULT_UP_TABLE_LIMIT,
) -> torch.Tensor:
    """up(RMSNorm_emb(e)) of the draft vocabulary: [Vd, m].

    Args:
        folded_up: [m, d], of ``fold_embedding_norm``.
        embedding: [V, d], the target's.
        inverse_rms: [V], of ``inverse_rms_table``.
        target_ids: int64 [Vd], of ``values.draft_to_target_ids``.
        dtype: of the table; default ``folded_up``'s. The products are computed in
            ``folded_up``'s dtype and rounded once.
        limit: bytes.

    Raises:
        DrafterError: a table larger than ``limit``; the message has its exact size.
    """
    import torch

    dtype = dtype or folded_up.dtype
    plan = plan_up_table(len(target_ids), folded_up.shape[0], dtype.itemsize, limit=limit)
    if not plan.enabled:
        raise DrafterError(plan.message)
    out = torch.empty(len(target_ids), folded_up.shape[0], dtype=dtype, device=embedding.device)
    for start in range(0, len(target_ids), _CHUNK_ROWS):
        ids = target_ids[start : start + _CHUNK_ROWS]
        rows = embedding[ids].to(folded_up.dtype) @ folded_up.T
        out[start : start + _CHUNK_ROWS] = rows * inverse_rms[ids].to(rows.dtype)[:, None]
    return out


def _compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    import torch

    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
