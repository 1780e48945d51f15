"""The token that the target draws at every draft node follows exactly the request's settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.runtime.v0_5_6.sampling import target_tokens
from sgl_entropy.serving.draws import request_probs
from sgl_entropy.serving.trees import verify_tree
from tests.runtime.chi_square import p_value

VOCABULARY = 8
ALL = 1 << 30


def settings(*requests: dict[str, float]) -> Any:
    """A batch's settings, as ``SamplingBatchInfo`` holds them."""

    def column(name: str, default: float) -> torch.Tensor:
        return torch.tensor([request.get(name, default) for request in requests])

    top_ks = column("top_k", ALL).int()
    return SimpleNamespace(
        temperatures=column("temperature", 1.0).float().view(-1, 1),
        top_ps=column("top_p", 1.0).float(),
        top_ks=top_ks,
        min_ps=column("min_p", 0.0).float(),
        is_all_greedy=bool((top_ks <= 1).all()),
        need_top_p_sampling=any("top_p" in request for request in requests),
        need_top_k_sampling=any("top_k" in request for request in requests),
        need_min_p_sampling=any("min_p" in request for request in requests),
    )


def exact(logits: torch.Tensor, request: dict[str, float]) -> dict[int, float]:
    """What a request with these settings must draw from, written out plainly."""
    probs = torch.softmax(logits.double() / request.get("temperature", 1.0), 0).tolist()
    ranked = sorted(range(len(probs)), key=lambda i: -probs[i])
    kept, mass = [], 0.0
    for rank, token in enumerate(ranked):
        if rank >= request.get("top_k", ALL) or mass > request.get("top_p", 1.0):
            break
        mass += probs[token]
        if probs[token] >= request.get("min_p", 0.0) * probs[ranked[0]]:
            kept.append(token)
    total = sum(probs[token] for token in kept)
    return {token: probs[token] / total for token in kept}


REQUESTS = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.3},
    "all": {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_each_node_draws_from_its_own_filtered_distribution(name: str) -> None:
    """Two requests of other settings share the batch; rows must not be mixed up."""
    torch.manual_seed(3)
    nodes, draws = 3, 6000
    requests = [{"temperature": 2.5}, REQUESTS[name], {"top_k": 1, "temperature": 1.0}]
    logits = 1.5 * torch.randn(3 * nodes, VOCABULARY)
    drawn = target_tokens(logits.repeat(draws, 1), settings(*requests * draws), nodes)
    assert drawn.dtype == torch.int64
    drawn = drawn.view(draws, -1)
    for row in range(3 * nodes):
        expected = exact(logits[row], requests[row // nodes])
        tokens = drawn[:, row].tolist()
        if len(expected) == 1:
            assert set(tokens) == set(expected)
        else:
            assert p_value(tokens, expected) > 1e-4, (row, expected)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_distributions_to_draw_from_are_those_that_upstream_samples_from(name: str) -> None:
    """Both are compared with the same plain law: here the probabilities, above upstream's draws."""
    torch.manual_seed(5)
    batch = [{"temperature": 2.5}, REQUESTS[name], {"top_k": 1}]
    request = torch.tensor([1, 0, 1, 2, 1])
    logits = 1.5 * torch.randn(len(request), VOCABULARY)
    probs = request_probs(logits, settings(*batch), request)
    for row, number in enumerate(request.tolist()):
        law = exact(logits[row], batch[number])
        expected = torch.tensor([law.get(token, 0.0) for token in range(VOCABULARY)])
        torch.testing.assert_close(probs[row], expected)


def test_greedy_batches_take_the_argmax() -> None:
    logits = torch.randn(6, VOCABULARY)
    tokens = target_tokens(logits, settings({"top_k": 1}, {"top_k": 1}), 3)
    assert tokens.tolist() == logits.argmax(1).tolist()


def drafted_pairs(broken: bool) -> tuple[list[tuple[int, int]], dict[tuple[int, int], float]]:
    """Emitted (first, second) tokens of one cycle with a two-branch draft, and their exact law.

    ``broken`` accepts a drafted token too often, by one part in ten.
    """
    generator = torch.Generator().manual_seed(0)
    # Nodes: root; children 2 and 5; below 2 a child 1. What the target thinks at each:
    logits = torch.randn(4, VOCABULARY, generator=generator)
    logits[0, 2] += 1.0
    after = {2: logits[1], 5: logits[2]}  # a token outside the draft ends the cycle
    probs = torch.softmax(logits.double(), 1)
    expected: dict[tuple[int, int], float] = {}
    for first in range(VOCABULARY):
        if first in after:
            node = 1 if first == 2 else 2
            for second in range(VOCABULARY):
                expected[first, second] = float(probs[0, first] * probs[node, second])
        else:
            expected[first, -1] = float(probs[0, first])
    torch.manual_seed(1)
    rounds = 8000
    wanted = target_tokens(logits.repeat(rounds, 1), settings(*[{}] * rounds), 4).view(-1, 4)
    if broken:
        wanted[torch.rand(rounds) < 0.1, 0] = 2
    predicts = torch.empty(rounds * 4 + 1, dtype=torch.int32)
    accepted = torch.empty(rounds, 3, dtype=torch.int32)
    index = torch.arange(rounds * 4).view(-1, 4)
    verify_tree(
        predicts,
        accepted,
        torch.empty(rounds, dtype=torch.int32),
        torch.tensor([[7, 2, 5, 1]]).repeat(rounds, 1),
        index,
        torch.tensor([[1, 3, -1, -1]]).repeat(rounds, 1),
        torch.tensor([[-1, 2, -1, -1]]).repeat(rounds, 1),
        wanted,
    )
    pairs = []
    for row in accepted.tolist():
        tokens = [int(predicts[i]) for i in row if i != -1]
        pairs.append((tokens[0], tokens[1] if len(tokens) > 1 else -1))
    return pairs, expected


def test_verification_emits_the_targets_joint_distribution() -> None:
    assert p_value(*drafted_pairs(broken=False)) > 1e-4


def test_the_statistic_sees_a_sampler_that_favours_drafted_tokens() -> None:
    assert p_value(*drafted_pairs(broken=True)) < 1e-6
