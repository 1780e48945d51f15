"""Penalties at every node of a draft are those of decoding the node's path token by token."""

from __future__ import annotations

import random

import pytest
import torch

from sgl_entropy.serving.penalties import Penalties, penalize_nodes

VOCABULARY = 9


def token_by_token(logits: torch.Tensor, asked: Penalties, output: list[int]) -> torch.Tensor:
    """What SGLang's penalizers make of one row after ``output``, written out plainly."""
    out = logits.clone()
    for token in set(output):
        out[token] -= asked.frequency * output.count(token) + asked.presence
    if len(output) < asked.min_new_tokens:
        out[list(asked.stop_ids)] = -torch.inf
    return out


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "asked",
    [
        Penalties(0.5, 0.0, 0, frozenset()),
        Penalties(0.0, 0.7, 0, frozenset()),
        Penalties(0.0, 0.0, 6, frozenset({2, 8})),
        Penalties(-0.3, 0.2, 5, frozenset({0})),
    ],
    ids=["frequency", "presence", "min_new_tokens", "all"],
)
def test_every_node_sees_the_tokens_before_it_and_no_others(seed: int, asked: Penalties) -> None:
    rng = random.Random(seed)
    output = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 5))]
    tokens = [output[-1], *(rng.randrange(VOCABULARY) for _ in range(6))]
    parents = [-1, *(rng.randrange(node) for node in range(1, 7))]
    raw = torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    rows = raw.clone()
    penalize_nodes(rows, asked, output, tokens, parents)
    for node in range(7):
        path, walk = [], node
        while walk > 0:
            path.insert(0, tokens[walk])
            walk = parents[walk]
        torch.testing.assert_close(rows[node], token_by_token(raw[node], asked, output + path))
