"""Draft trees: their links, and the walk that verifies them (the CPU engine's own, in plain torch).

A batch's trees have n nodes each: node 0 is the verified token (the root), the others are drafted
tokens. Links name nodes of the same request; flat numbers are request * n + node.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftTree:
    """The trees of a batch: the engine's own tensors, so that what is written here holds there.

    Attributes:
        tokens: [b * n].
        slots: [b, n], each node's flat number; -1 = it is not verified.
        child, sibling: [b, n], a node's first child and next sibling; -1 = none.
    """

    tokens: Tensor
    slots: Tensor
    child: Tensor
    sibling: Tensor

    @property
    def nodes(self) -> int:
        """n."""
        return self.slots.shape[1]


def build_tree(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    num_verify_tokens: int,
    tree_mask_mode: int = 0,
) -> None:
    """The CUDA operator ``build_tree_kernel_efficient``; every output is written in place.

    Node 0 is the verified token, node j + 1 the draft token with candidate number
    ``selected_index[b, j]``. Candidate c < topk hangs below the root; otherwise it was expanded
    from table entry ``c // topk`` of ``parent_list`` (which holds candidate numbers, entry 0 the
    root). Children are linked in the order of their node numbers.

    A candidate number of -1 marks a node that is not verified (``pruning``): it has no parent and
    its entry in ``retrive_index`` is -1. In a chain only the last nodes are pruned.

    Args:
        tree_mask: flat full mask, b blocks of ``num_verify_tokens`` rows of ``seq_len +
            num_verify_tokens`` columns, True already in the sequence's columns.
        positions: [b * num_verify_tokens]; the three index tensors are
            [b, num_verify_tokens] and hold -1 where there is nothing.
    """
    assert tree_mask_mode == 0, "the CPU engine builds full masks only"
    batch, n = retrive_index.shape
    retrive_index.copy_(torch.arange(batch * n).view(batch, n))
    lens = seq_lens.tolist()
    if topk == 1:
        order = torch.arange(n)
        positions.copy_((seq_lens.long()[:, None] + order).flatten())
        live = 1 + (selected_index >= 0).sum(1, keepdim=True)
        retrive_index.masked_fill_(order >= live, -1)
        retrive_next_token[:, : n - 1] = order[1:].expand(batch, -1).where(order[1:] < live, -1)
        block = torch.ones(n, n, dtype=torch.bool).tril()
        _write_blocks(tree_mask, lens, n, [block] * batch)
        return
    retrive_index[:, 1:].masked_fill_(selected_index < 0, -1)
    selected = selected_index.tolist()
    parents = parent_list.long().tolist()
    blocks = []
    for b in range(batch):
        node_of = {candidate: j + 1 for j, candidate in enumerate(selected[b])}
        # Equal scores can select a candidate without its parent: it stays unreachable (-1).
        parent = [-1] + [
            -1 if c < 0 else 0 if c < topk else node_of.get(parents[b][c // topk], -1)
            for c in selected[b]
        ]
        depth_of = [0] * n
        block = torch.zeros(n, n, dtype=torch.bool)
        block[0, 0] = True
        last_child: dict[int, int] = {}
        for node in range(1, n):
            up = parent[node]
            if up == -1:
                block[node, node] = True
                continue
            depth_of[node] = depth_of[up] + 1
            block[node] = block[up]
            block[node, node] = True
            if up in last_child:
                retrive_next_sibling[b, last_child[up]] = node
            else:
                retrive_next_token[b, up] = node
            last_child[up] = node
        positions[b * n : (b + 1) * n] = torch.tensor(depth_of) + lens[b]
        blocks.append(block)
    _write_blocks(tree_mask, lens, n, blocks)


def _write_blocks(
    tree_mask: torch.Tensor, lens: list[int], n: int, blocks: list[torch.Tensor]
) -> None:
    start = 0
    for seq_len, block in zip(lens, blocks, strict=True):
        width = seq_len + n
        tree_mask[start : start + n * width].view(n, width)[:, seq_len:] = block
        start += n * width


def verify_tree(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """The CUDA operator ``verify_tree_greedy``; outputs are written in place.

    From the root on, the target's token at a node decides: if a child carries it, that child is
    accepted and the walk goes on there; else it is emitted and the walk ends. With
    ``target_predict`` drawn from the target's distribution at every node this is exact sampling
    (ours: a drafted token is accepted with exactly its target probability, and on rejection the
    emitted token is distributed as the target's, given that it is none of the children).

    Args:
        predicts: [b * n + 1] flat; the token emitted after each accepted node.
        accept_index: [b, steps + 1] flat numbers of the accepted nodes, -1 after them.
        accept_token_num: [b] accepted drafts, the root not counted.
        candidates, retrive_*, target_predict: [b, n].
    """
    tokens = candidates.tolist()
    flat = retrive_index.tolist()
    child = retrive_next_token.tolist()
    sibling = retrive_next_sibling.tolist()
    wanted = target_predict.tolist()
    depth = accept_index.shape[1]
    accepted_rows = []
    counts = []
    where: list[int] = []
    what: list[int] = []
    for b in range(len(tokens)):
        node, path = 0, [flat[b][0]]
        while True:
            token = wanted[b][node]
            where.append(flat[b][node])
            what.append(token)
            if len(path) == depth:
                break
            below = child[b][node]
            while below != -1 and tokens[b][below] != token:
                below = sibling[b][below]
            if below == -1:
                break
            node = below
            path.append(flat[b][node])
        counts.append(len(path) - 1)
        accepted_rows.append(path + [-1] * (depth - len(path)))
    predicts[torch.tensor(where)] = torch.tensor(what, dtype=predicts.dtype)
    accept_index.copy_(torch.tensor(accepted_rows, dtype=accept_index.dtype))
    accept_token_num.copy_(torch.tensor(counts, dtype=accept_token_num.dtype))


def tree_parents(next_token: list[list[int]], next_sibling: list[list[int]]) -> list[list[int]]:
    """Parents of the nodes of each tree from its child and sibling links; -1 = unreachable."""
    out = []
    for child, sibling in zip(next_token, next_sibling, strict=True):
        parent = [-1] * len(child)
        waiting = [0]
        while waiting:
            node = waiting.pop()
            below = child[node]
            while below != -1:
                parent[below] = node
                waiting.append(below)
                below = sibling[below]
        out.append(parent)
    return out


def path_tokens(tokens: list[int], parents: list[int]) -> list[list[int]]:
    """The drafted tokens from below the root to each node, the node's own last.

    Args:
        tokens, parents: of one tree's nodes; parents from ``tree_parents``.
    """
    paths = []
    for node in range(len(tokens)):
        path = []
        walk = node
        while walk > 0:
            path.append(tokens[walk])
            walk = parents[walk]
        paths.append(path[::-1])
    return paths
