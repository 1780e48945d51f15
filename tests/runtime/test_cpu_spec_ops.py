"""The CPU engine's speculation kernels against their meaning, worked out independently."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sgl_entropy.serving.trees import build_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_equal_to_upstreams_triton_kernels() -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.upstream_kernels"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" equal") == 3


class Draft:
    """A draft as upstream makes it, from a random model whose every candidate has its own token.

    ``parent`` says from which token a candidate was expanded; the tree must say the same.
    """

    def __init__(self, seed: int, batch: int, topk: int, steps: int, tokens: int) -> None:
        from sglang.srt.speculative.eagle_utils import organize_draft_results
        from sglang.srt.speculative.spec_utils import select_top_k_tokens

        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.parent: dict[int, int | None] = {}
        fresh = iter(rng.sample(range(1000, 99999), batch * (topk + steps * topk * topk)))

        def expand(parents: list[int | None]) -> tuple[torch.Tensor, torch.Tensor]:
            """[rows, topk] probabilities, falling, and new tokens for each row's parent."""
            logits = 3 * torch.randn(len(parents), topk + 5, generator=generator)
            probs = torch.softmax(logits, 1).topk(topk).values
            ids = torch.tensor([[next(fresh) for _ in range(topk)] for _ in parents])
            for row, up in zip(ids.tolist(), parents, strict=True):
                self.parent.update(dict.fromkeys(row, up))
            return probs, ids

        probs, ids = expand([None] * batch)
        hidden, scores = torch.zeros(batch, 4), None
        collected: tuple[list[torch.Tensor], ...] = ([], [], [])
        for step in range(steps):
            inputs, hidden, scores, info = select_top_k_tokens(
                step, probs, ids, hidden, scores, topk
            )
            for kept, value in zip(collected, info, strict=True):
                kept.append(value)
            probs, ids = expand(inputs.tolist())
        self.parents, self.selected, self.tokens = organize_draft_results(*collected, tokens)


@pytest.fixture(autouse=True)
def every_node_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned drafts have their own tests (``tests/serving/test_pruning``)."""
    monkeypatch.setenv("SGL_ENTROPY_CPU_CYCLE_ROWS", "inf")


SHAPES = [(1, 1, 2), (1, 4, 5), (3, 1, 4), (3, 4, 12), (2, 3, 5), (6, 8, 60), (4, 2, 7), (3, 4, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "topk{}_steps{}_n{}".format(*shape))
@pytest.mark.parametrize("seed", range(4))
def test_build_tree_hangs_each_token_where_it_was_expanded(
    shape: tuple[int, int, int], seed: int
) -> None:
    topk, steps, n = shape
    lens = random.Random(seed).choices([1, 7, 30], k=3)
    batch = len(lens)
    draft = Draft(seed, batch, topk, steps, n)
    flat = torch.ones(sum(lens) * n + batch * n * n, dtype=torch.bool)
    positions = torch.full((batch * n,), -5)
    index, child, sibling = torch.full((3, batch, n), -1)
    build_tree(
        *(draft.parents, draft.selected, torch.tensor(lens), flat, positions),
        *(index, child, sibling, topk, steps, n),
    )
    assert index.tolist() == [[b * n + i for i in range(n)] for b in range(batch)]
    start = 0
    for b, length in enumerate(lens):
        tokens = [None, *draft.tokens[b].tolist()]  # the root stands for "no parent"
        parent = [-1] + [tokens.index(draft.parent[token]) for token in tokens[1:]]
        ancestors: list[set[int]] = [{0}]
        for node in range(1, n):
            assert parent[node] < node, "a child comes after its parent"
            ancestors.append(ancestors[parent[node]] | {node})
        mask = flat[start : start + n * (length + n)].view(n, length + n)
        start += n * (length + n)
        assert mask[:, :length].all(), "every node sees the whole sequence"
        for node in range(n):
            seen = set(mask[node, length:].nonzero().flatten().tolist())
            assert seen == ancestors[node]
            assert positions[b * n + node] == length + len(ancestors[node]) - 1
            children, below = [], int(child[b, node])
            while below != -1:
                children.append(below)
                below = int(sibling[b, below])
            assert children == [i for i in range(n) if parent[i] == node]


def test_build_tree_keeps_a_token_without_its_parent_out_of_reach() -> None:
    """Equal scores can select a candidate and not the one that it was expanded from."""
    # topk 2: candidates 0, 1 at the root; 2, 3 below table entry 1, which holds candidate 0.
    index, child, sibling = torch.full((3, 1, 3), -1)
    flat, positions = torch.ones(3 * 7, dtype=torch.bool), torch.zeros(3, dtype=torch.long)
    build_tree(
        *(torch.tensor([[-1, 0, 1]]), torch.tensor([[1, 2]]), torch.tensor([4]), flat, positions),
        *(index, child, sibling, 2, 2, 3),
    )
    assert child[0].tolist() == [1, -1, -1]
    assert sibling[0].tolist() == [-1, -1, -1]
