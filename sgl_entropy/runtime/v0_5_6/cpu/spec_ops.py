"""SGLang's speculation kernels in plain torch, for the CPU engine.

The Triton kernels of ``speculative/spec_utils.py`` are launched as ``kernel[grid](...)``;
:class:`HostKernel` gives a plain function that form, so that call sites stay as they are. The
CUDA operators ``build_tree_kernel_efficient`` and ``verify_tree_greedy`` are ``serving.trees``'s
``build_tree`` and ``verify_tree``.

``flags.prepare`` refuses pages of more than one token on the CPU engine, so the branches for them
are left out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sgl_entropy.serving.trees import build_tree, verify_tree

__all__ = [
    "assign_draft_cache_locs",
    "assign_req_to_token_pool",
    "build_tree",
    "create_extend_after_decode_spec_info",
    "verify_tree",
]


class HostKernel:
    """A function under Triton's launch syntax; the grid is ignored."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.function


@HostKernel
def create_extend_after_decode_spec_info(
    verified_id: torch.Tensor,
    seq_lens: torch.Tensor,
    accept_lens: torch.Tensor,
    positions: torch.Tensor,
    new_verified_id: torch.Tensor,
    *_: Any,
) -> None:
    """Positions of the accepted tokens and the last token of each request, both written in place.

    ``accept_lens`` [b] counts the bonus token; the accepted tokens of request i are at positions
    ``seq_lens[i] - accept_lens[i]`` onwards.
    """
    lens = accept_lens.long()
    ends = lens.cumsum(0)
    within = torch.arange(positions.numel()) - torch.repeat_interleave(ends - lens, lens)
    positions.copy_(torch.repeat_interleave(seq_lens.long() - lens, lens) + within)
    new_verified_id.copy_(verified_id[ends - 1])


@HostKernel
def assign_req_to_token_pool(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    *_: Any,
) -> None:
    """``req_to_token[r, start:end] = `` the request's part of ``out_cache_loc``, for every r."""
    lens = (end_offset - start_offset).long()
    rows = torch.repeat_interleave(req_pool_indices.long(), lens)
    ends = lens.cumsum(0)
    within = torch.arange(rows.numel()) - torch.repeat_interleave(ends - lens, lens)
    columns = torch.repeat_interleave(start_offset.long(), lens) + within
    req_to_token[rows, columns] = out_cache_loc[: rows.numel()].to(req_to_token.dtype)


@HostKernel
def assign_draft_cache_locs(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    extend_lens: torch.Tensor,
    num_new_pages_per_topk: torch.Tensor,
    out_cache_loc: torch.Tensor,
    source_cache_loc: torch.Tensor | None,
    target_cache_loc: torch.Tensor | None,
    last_page_lens_cumsum: torch.Tensor | None,
    duplicate_cache_len: int,
    pool_len: int,
    topk: int,
    speculative_num_steps: int,
    page_size: int,
    *_: Any,
) -> None:
    """``topk * steps`` slots of each request go after its sequence in ``req_to_token``."""
    assert page_size == 1, "the CPU engine serves speculation with --page-size 1"
    copied = topk * speculative_num_steps
    columns = seq_lens.long()[:, None] + torch.arange(copied)
    req_to_token[req_pool_indices.long()[:, None], columns] = out_cache_loc.view(-1, copied).to(
        req_to_token.dtype
    )
