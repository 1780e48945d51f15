"""Penalties of one request at every node of its draft tree (ours).

The counts come from the request's own output and from each node's path, so that greedy output with
penalties is the same with and without speculation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Penalties:
    """What one request asks for.

    Attributes:
        stop_ids: the ids that end it, forbidden while the output is shorter than
            ``min_new_tokens``.
    """

    frequency: float
    presence: float
    min_new_tokens: int
    stop_ids: frozenset[int]


def penalize_nodes(
    rows: torch.Tensor,
    asked: Penalties,
    output_ids: Sequence[int],
    tokens: list[int],
    parents: list[int],
) -> None:
    """Penalize one request's nodes in place.

    Formulae as in SGLang's penalizers: frequency times count, presence once, stop tokens at -inf
    while the output is shorter than ``min_new_tokens``.

    Args:
        rows: [n, vocabulary].
        output_ids: the request's output, which holds node 0's token (the last verified one).
        tokens, parents: n entries; parents from ``trees.tree_parents``.
    """
    frequency, presence = asked.frequency, asked.presence
    counts = Counter(output_ids)
    if frequency or presence:
        index = torch.tensor(list(counts), device=rows.device)
        amount = torch.tensor(
            [frequency * count + presence for count in counts.values()],
            dtype=rows.dtype,
            device=rows.device,
        )
        rows[:, index] -= amount
    stop_ids = None
    if asked.min_new_tokens > 0:
        stop_ids = torch.tensor(sorted(asked.stop_ids), device=rows.device)
    for node in range(len(tokens)):
        path: Counter[int] = Counter()
        walk = node
        while walk > 0:
            path[tokens[walk]] += 1
            walk = parents[walk]
        if walk == -1:
            continue
        if frequency or presence:
            for token, count in path.items():
                rows[node, token] -= frequency * count + (0.0 if token in counts else presence)
        if stop_ids is not None and len(output_ids) + path.total() < asked.min_new_tokens:
            rows[node, stop_ids] = float("-inf")
