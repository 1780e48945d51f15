"""Which drafted nodes are verified, and what a pruned tree becomes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_entropy.serving import pruning
from sgl_entropy.serving.row_costs import paid_rows
from sgl_entropy.serving.trees import build_tree, verify_tree

INF = float("inf")


def test_a_batch_whose_rows_are_paid_for_keeps_every_node() -> None:
    assert pruning.worth_verifying(torch.tensor([[0.01, 0.0, 0.0, 0.0]]), 0.0).all()


def test_the_best_nodes_of_the_whole_batch_are_kept() -> None:
    # 4 requests with 4 nodes are 20 rows: 8, 16 and 20 (paid as 24) are the choices.
    scores = torch.tensor(
        [[0.9, 0.8, 0.7, 0.6], [0.1, 0.1, 0.0, 0.0], [0.2, 0.1, 0.1, 0.1], [0.1, 0.0, 0.0, 0.0]]
    )
    # (4 + 3) / (4 + 8) = .58; (4 + 3 + .8) / (4 + 16) = .39: eight rows, four of them roots.
    kept = pruning.worth_verifying(scores, 4.0)
    assert kept.tolist() == [[True] * 4, [False] * 4, [False] * 4, [False] * 4]
    assert pruning.worth_verifying(scores, INF).all()


def test_dear_cycles_verify_more() -> None:
    scores = torch.rand(16, 4, generator=torch.Generator().manual_seed(0)).cumprod(1)
    counts = [int(pruning.worth_verifying(scores, f).sum()) for f in (0, 20, 60, 200, 5000, INF)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[-1] == 64


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10**9), st.integers(1, 20), st.integers(1, 12), st.floats(0, 300))
def test_no_other_choice_promises_more_tokens_a_second(
    seed: int, batch: int, nodes: int, fixed: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that equal ones and certain ones (1.0) are common.
    steps = torch.randint(0, 5, (batch, nodes), generator=generator) / 4
    scores = steps.cumprod(1)
    kept = pruning.worth_verifying(scores, fixed)
    for row in kept.tolist():
        assert row == sorted(row, reverse=True), "a chain is cut, never holed"

    def value(mask: torch.Tensor) -> float:
        rows = paid_rows(batch + int(mask.sum()))
        return (batch + float(scores[mask].sum())) / (fixed + rows)

    best = value(kept)
    ranked = scores.flatten().argsort(descending=True, stable=True)
    for count in range(batch * nodes + 1):
        mask = torch.zeros(batch * nodes, dtype=torch.bool)
        mask[ranked[:count]] = True
        assert value(mask.view(batch, nodes)) <= best + 1e-6


def test_scores_that_are_no_numbers_are_worth_nothing() -> None:
    scores = torch.full((16, 4), 0.5)
    scores[3] = float("nan")
    kept = pruning.worth_verifying(scores, 500.0)
    assert not kept[3].any() or kept.all()
    assert kept[2].any()


@pytest.mark.parametrize("text", ["-1", "nan", "many", "1e", "-inf"])
def test_a_bad_setting_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(pruning.VARIABLE, text)
    with pytest.raises(ValueError, match=rf"{pruning.VARIABLE}={text}: expected a number"):
        pruning.cycle_rows()


@pytest.mark.parametrize(("text", "value"), [("inf", INF), ("0", 0.0), ("33.5", 33.5)])
def test_the_setting_is_read(monkeypatch: pytest.MonkeyPatch, text: str, value: float) -> None:
    monkeypatch.setenv(pruning.VARIABLE, text)
    assert pruning.cycle_rows() == value
    monkeypatch.setenv(pruning.VARIABLE, "")
    assert 0 < pruning.cycle_rows() < INF


def links(selected: torch.Tensor, parents: torch.Tensor, topk: int, steps: int) -> SimpleNamespace:
    """What ``build_tree`` makes of the selected candidates; the sequences have three tokens."""
    batch, n = selected.shape[0], selected.shape[1] + 1
    lens = torch.full((batch,), 3)
    tree = SimpleNamespace(
        mask=torch.ones(batch * n * (3 + n), dtype=torch.bool),
        positions=torch.zeros(batch * n, dtype=torch.long),
    )
    tree.index, tree.child, tree.sibling = torch.full((3, batch, n), -1)
    build_tree(
        *(parents, selected, lens, tree.mask, tree.positions),
        *(tree.index, tree.child, tree.sibling, topk, steps, n),
    )
    return tree


def walk(tree: SimpleNamespace, tokens: torch.Tensor, wanted: torch.Tensor) -> list[list[int]]:
    """Tokens that each request emits."""
    batch, n = tokens.shape
    predicts = torch.full((batch * n + 1,), -1)
    accepted, count = torch.full((batch, n), -1), torch.zeros(batch, dtype=torch.long)
    verify_tree(predicts, accepted, count, tokens, tree.index, tree.child, tree.sibling, wanted)
    return [[int(predicts[i]) for i in row if i != -1] for row in accepted]


def test_a_pruned_chain_ends_where_it_was_cut() -> None:
    selected = torch.tensor([[0, 1, 2, -1], [-1, -1, -1, -1], [0, 1, 2, 3]])
    tree = links(selected, torch.zeros(3, 0), topk=1, steps=4)
    assert (tree.index >= 0).sum(1).tolist() == [4, 1, 5]
    assert tree.child.tolist() == [[1, 2, 3, -1, -1], [-1] * 5, [1, 2, 3, 4, -1]]
    # The target agrees with every draft: as many are emitted as were verified.
    tokens = torch.arange(15).view(3, 5)
    wanted = tokens + 1
    assert [len(row) for row in walk(tree, tokens, wanted)] == [4, 1, 5]


@pytest.mark.parametrize("seed", range(20))
def test_a_pruned_tree_is_the_tree_of_the_kept_nodes(seed: int) -> None:
    """topk 2, two steps: candidates 0 and 1 below the root, 2-3 below 0 and 4-5 below 1."""
    generator = torch.Generator().manual_seed(seed)
    selected = torch.arange(6)[None]
    keep = torch.rand(6, generator=generator) < 0.6
    keep[2:] &= keep[:2].repeat_interleave(2)
    parents = torch.tensor([[-1, 0, 1]])
    pruned = links(selected.masked_fill(~keep, -1), parents, topk=2, steps=2)
    assert ((pruned.index >= 0)[0, 1:] == keep).all()
    few = selected[:, keep]
    small = links(few, parents, topk=2, steps=2)
    tokens = torch.tensor([[9, 1, 2, 3, 4, 3, 4]])
    some = torch.tensor([0, *(1 + keep.nonzero().flatten()).tolist()])
    for _ in range(8):
        wanted = torch.randint(1, 5, (1, 7), generator=generator)
        expected = walk(small, tokens[:, some], wanted[:, some])
        assert walk(pruned, tokens, wanted) == expected
    # The kept rows see what they saw, and stand where they stood.
    rows = pruned.mask.view(7, 10)[some]
    assert (rows[:, 3 + some] == small.mask.view(len(some), -1)[:, 3:]).all()
    assert (pruned.positions[some] == small.positions).all()
