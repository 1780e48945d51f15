"""Attention on the CPU engine as plans: what a forward attends to, worked out once.

Indices and masks do not depend on the layer, so they are made once a forward; sequences of similar
length share a kernel call, and only new rows are computed. An engine's attention backends run the
plans. Tests compare them with ``reference_attention``: one row at a time, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

# Sequences share a kernel call while the shortest fills at least this share of the longest.
_FILL = 0.7
_SLACK = 32


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences that one kernel call serves.

    Attributes:
        rows: [b, n] positions in the flat query of each sequence's rows; None = all rows in order.
        kv: [b, l] slots of the KV pool, padded with slot 0 (never written by a request).
        mask: [b, 1, n, l] bool, True = may attend; None = everything may.
        keep: [b, n] bool, False = a padded row whose output is dropped; None = no padding.
        causal: the n new rows are the whole sequence, so the kernel's own causal mode serves.
    """

    rows: torch.Tensor | None
    kv: torch.Tensor
    mask: torch.Tensor | None
    keep: torch.Tensor | None
    n: int
    causal: bool = False


def group_by_length(lengths: list[int]) -> list[list[int]]:
    """Indices of sequences grouped so that padding stays below 1 - ``_FILL`` (ours).

    A batch whose sequences are all similar stays one group in its own order.
    """
    if not lengths:
        return []
    if min(lengths) >= _FILL * max(lengths) - _SLACK:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = [[order[0]]]
    for i in order[1:]:
        if lengths[i] >= _FILL * lengths[groups[-1][0]] - _SLACK:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [sorted(group) for group in groups]


def make_plan(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    kv_lens: list[int],
    new_lens: list[int],
    tree_mask: list[torch.Tensor] | None = None,
) -> list[AttentionGroup]:
    """Plan the attention of ``new_lens[i]`` last rows of each sequence over ``kv_lens[i]`` keys.

    Args:
        req_to_token: [requests, context] slots of the KV pool.
        req_pool_indices: [b] rows of ``req_to_token``.
        kv_lens: keys per sequence, the new rows' own included.
        new_lens: query rows per sequence.
        tree_mask: for each sequence [new_lens[i], n] bool, which of its last n keys each row sees;
            all keys before them are seen. None = causal.
    """
    starts = [0]
    for n in new_lens:
        starts.append(starts[-1] + n)
    if max(new_lens) > 16:
        # A prefill: the kernels are large, and padding rows would cost more than it saves.
        groups = [[i] for i in range(len(kv_lens))]
    else:
        groups = group_by_length(kv_lens)
    plan = []
    for group in groups:
        lens = [kv_lens[i] for i in group]
        news = [new_lens[i] for i in group]
        longest, n = max(lens), max(news)
        whole = len(group) == len(kv_lens)
        pool_rows = req_pool_indices if whole else req_pool_indices[group]
        kv = req_to_token[pool_rows, :longest].long()
        ragged_rows = min(news) != n
        ragged_kv = min(lens) != longest
        lens_t = torch.tensor(lens)
        news_t = torch.tensor(news)
        columns = torch.arange(longest)
        if ragged_kv:
            kv.masked_fill_(columns >= lens_t[:, None], 0)
        rows = keep = None
        if not whole or ragged_rows:
            first = torch.tensor([starts[i] for i in group])
            offsets = torch.arange(n)
            # Padded rows repeat the sequence's last one: valid to compute, dropped afterwards.
            rows = first[:, None] + torch.minimum(offsets[None, :], news_t[:, None] - 1)
            if ragged_rows:
                keep = offsets[None, :] < news_t[:, None]
        if n > 1 and len(group) == 1 and n == longest and tree_mask is None:
            plan.append(AttentionGroup(rows, kv, None, keep, n, causal=True))
            continue
        mask = None
        if n > 1 or ragged_kv or tree_mask is not None:
            # Row r of a sequence with k keys and m new rows sees keys up to k - m + r.
            limit = (lens_t - news_t)[:, None] + torch.arange(n)[None, :]
            mask = columns[None, None, :] <= limit[:, :, None]
            if ragged_rows:
                mask &= columns[None, None, :] < lens_t[:, None, None]
            if tree_mask is not None:
                for j, i in enumerate(group):
                    seen = tree_mask[i]
                    mask[j, : len(seen), lens[j] - seen.shape[1] : lens[j]] = seen
                    mask[j, len(seen) :] = mask[j, len(seen) - 1]
                # A pruned node's slot holds what its last owner left, and a weight of zero does
                # not silence a NaN there.
                kv.masked_fill_(~mask.any(1), 0)
            mask = mask[:, None]
        plan.append(AttentionGroup(rows, kv, mask, keep, n))
    return plan


def attend(
    query: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    plan: list[AttentionGroup],
    scaling: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """Run a plan for one layer.

    Args:
        query: [tokens, heads, d]; ``out``: [tokens, heads, dv], written in place and returned.
        k_pool, v_pool: [slots, kv heads, d or dv].
    """
    heads, dim = query.shape[1], query.shape[2]
    kv_heads = k_pool.shape[1]
    ratio = heads // kv_heads
    for group in plan:
        b, length = group.kv.shape
        n = group.n
        q = query if group.rows is None else query[group.rows.flatten()]
        flat = group.kv.flatten()
        k = k_pool.index_select(0, flat).view(b, length, kv_heads, -1).transpose(1, 2)
        v = v_pool.index_select(0, flat).view(b, length, kv_heads, -1).transpose(1, 2)
        q = q.view(b, n, heads, dim)
        if group.causal:
            o = scaled_dot_product_attention(
                q.transpose(1, 2), k, v, scale=scaling, is_causal=True, enable_gqa=ratio > 1
            )
            o = o.transpose(1, 2)
        else:
            # The query heads of one KV head become rows of one problem: keys are read once.
            q = q.view(b, n, kv_heads, ratio, dim).permute(0, 2, 3, 1, 4)
            q = q.reshape(b, kv_heads, ratio * n, dim)
            mask = group.mask
            if mask is not None and ratio > 1 and n > 1:
                mask = mask.repeat(1, 1, ratio, 1)
            o = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
            o = o.view(b, kv_heads, ratio, n, -1).permute(0, 3, 1, 2, 4)
        o = o.reshape(b, n, heads, -1)
        if group.rows is None:
            out.copy_(o.reshape(out.shape))
        elif group.keep is None:
            out[group.rows.flatten()] = o.reshape(b * n, heads, -1)
        else:
            out[group.rows[group.keep]] = o[group.keep]
    return out


def reference_attention(
    query: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    visible: list[list[int]],
    scaling: float,
) -> torch.Tensor:
    """Attention row by row in float64: ``visible[t]`` lists the slots that row t sees."""
    heads, kv_heads = query.shape[1], k_pool.shape[1]
    out = torch.empty(query.shape[0], heads, v_pool.shape[2], dtype=torch.float64)
    for t, slots in enumerate(visible):
        for h in range(heads):
            k = k_pool[slots, h * kv_heads // heads].double()
            v = v_pool[slots, h * kv_heads // heads].double()
            weights = torch.softmax(k @ query[t, h].double() * scaling, 0)
            out[t, h] = weights @ v
    return out


def tree_block(custom_mask: torch.Tensor, seq_lens: list[int], n: int) -> torch.Tensor:
    """The [b, n, n] draft part of SGLang's flat full mask (n rows of seq_len + n a sequence)."""
    blocks, start = [], 0
    for seq_len in seq_lens:
        width = seq_len + n
        blocks.append(custom_mask[start : start + n * width].view(n, width)[:, seq_len:])
        start += n * width
    return torch.stack(blocks)


def draft_step_plans(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: list[int],
    topk: int,
    steps: int,
) -> list[list[AttentionGroup]]:
    """One plan for each of the ``steps - 1`` draft forwards; rows are [b * topk], branch inside.

    A row's keys are its branch's newest tokens first, then the sequence, so that every step's
    indices are a slice of one table (the order of keys does not matter to attention).
    """
    plans: list[list[AttentionGroup]] = [[] for _ in range(steps - 1)]
    for group in group_by_length(seq_lens):
        lens = torch.tensor([seq_lens[i] for i in group])
        longest = int(lens.max())
        pool_rows = req_pool_indices if len(group) == len(seq_lens) else req_pool_indices[group]
        columns = torch.arange(longest)
        prefix = req_to_token[pool_rows, :longest].long()
        ragged = int(lens.min()) != longest
        if ragged:
            prefix.masked_fill_(columns >= lens[:, None], 0)
        # [b, topk, steps - 1], the newest token in column 0 at the last step
        order = torch.arange(steps - 2, -1, -1)
        branch_at = lens[:, None, None] + torch.arange(topk)[None, :, None] * steps + order
        branch = req_to_token[pool_rows[:, None, None], branch_at].long()
        table = torch.cat([branch, prefix[:, None].expand(-1, topk, -1)], 2)
        table = table.reshape(len(group) * topk, steps - 1 + longest)
        mask = None
        if ragged:
            seen = columns < lens[:, None]
            seen = torch.cat([seen.new_ones(len(group), steps - 1), seen], 1)
            mask = seen.repeat_interleave(topk, 0)[:, None, None, :]
        rows = None
        if len(group) != len(seq_lens):
            rows = (torch.tensor(group)[:, None] * topk + torch.arange(topk)).reshape(-1, 1)
        for step in range(steps - 1):
            skip = steps - 2 - step
            visible = None if mask is None else mask[..., skip:]
            plans[step].append(AttentionGroup(rows, table[:, skip:], visible, None, 1))
    return plans


def narrowed(plan: list[AttentionGroup], live: torch.Tensor) -> list[AttentionGroup]:
    """A draft step's attention plan (one row a sequence) for the ``live`` rows (bool [b]) alone."""
    place = live.cumsum(0) - 1
    out = []
    for group in plan:
        kept = live if group.rows is None else live[group.rows[:, 0]]
        if bool(kept.any()):
            rows = None if group.rows is None else place[group.rows[kept]]
            mask = None if group.mask is None else group.mask[kept]
            out.append(AttentionGroup(rows, group.kv[kept], mask, None, 1))
    return out
