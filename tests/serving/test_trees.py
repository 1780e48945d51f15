"""Draft trees: links name parents, and the walk goes on while the target agrees."""

from __future__ import annotations

import itertools
import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_entropy.serving.trees import tree_parents, verify_tree


def random_trees(rng: random.Random, batch: int, n: int, vocabulary: int):
    """Trees with distinct tokens among siblings, in upstream's link form, and their parents."""
    tokens = [[rng.randrange(vocabulary)] for _ in range(batch)]
    parents = [[-1] for _ in range(batch)]
    child, sibling = torch.full((2, batch, n), -1)
    for b in range(batch):
        taken: dict[int, dict[int, int]] = {}  # node -> {token: child}
        for node in range(1, n):
            up = rng.randrange(node)
            while len(taken.get(up, {})) == vocabulary:
                up = rng.randrange(node)
            below = taken.setdefault(up, {})
            token = rng.choice([t for t in range(vocabulary) if t not in below])
            if below:
                sibling[b, list(below.values())[-1]] = node
            else:
                child[b, up] = node
            below[token] = node
            tokens[b].append(token)
            parents[b].append(up)
    return tokens, parents, child, sibling


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(2, 14), st.integers(1, 6))
def test_verify_tree_walks_while_the_target_agrees(
    seed: int, batch: int, n: int, steps: int
) -> None:
    rng = random.Random(seed)
    tokens, parents, child, sibling = random_trees(rng, batch, n, vocabulary=3)
    assert tree_parents(child.tolist(), sibling.tolist()) == parents
    wanted = [[rng.randrange(3) for _ in range(n)] for _ in range(batch)]
    predicts = torch.full((batch * n + 1,), -9, dtype=torch.int32)
    accepted = torch.full((batch, steps + 1), -1, dtype=torch.int32)
    count = torch.empty(batch, dtype=torch.int32)
    index = torch.arange(batch * n).view(batch, n)
    verify_tree(
        *(predicts, accepted, count, torch.tensor(tokens), index, child, sibling),
        torch.tensor(wanted),
    )
    for b in range(batch):
        # Brute force: the longest root path all of whose tokens the target wants, one by one.
        paths = []
        for node in range(n):
            path = [node]
            while parents[b][path[0]] != -1:
                path.insert(0, parents[b][path[0]])
            agrees = all(tokens[b][i] == wanted[b][up] for up, i in itertools.pairwise(path))
            if agrees and len(path) <= steps + 1:
                paths.append(path)
        best = max(paths, key=len)
        assert [len(path) for path in paths].count(len(best)) == 1
        assert accepted[b].tolist() == [b * n + i for i in best] + [-1] * (steps + 1 - len(best))
        assert count[b] == len(best) - 1
        assert predicts[[b * n + i for i in best]].tolist() == [wanted[b][i] for i in best]
