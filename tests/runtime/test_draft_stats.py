"""The drafter's statistics reach the node and the request that they belong to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy.runtime.v0_5_6 import draft_stats
from sgl_entropy.serving import attached
from sgl_entropy.serving.attached import CapturedGraphs
from sgl_entropy.serving.draft_logits import DraftLogits, DraftStats
from sgl_entropy.serving.draft_nodes import KnownNodes, WaitingNodes
from sgl_entropy.serving.mode import Mode
from sgl_entropy.verify.easd import uncertainty
from sgl_entropy.verify.rule import EasdRule
from tests.runtime.easd_batches import DRAFT_VOCABULARY, RULE, TO_TARGET, VOCABULARY, worker


def test_statistics_of_a_tree_belong_to_the_node_that_was_expanded(served: Any) -> None:
    """Two branches, two steps: candidate c was drafted from distribution c // 2."""
    served(Mode(RULE))
    torch.manual_seed(2)
    first, second = torch.randn(3, DRAFT_VOCABULARY), torch.randn(3 * 2, DRAFT_VOCABULARY)
    source = SimpleNamespace()
    draft_stats.first(worker(), source, first)
    draft_stats.step(worker(), source, second)
    selected = torch.tensor([[0, 1, 3, 4], [0, 2, 5, -1], [1, 2, 3, 5]])
    scores = [torch.rand(3, 1, 2), torch.rand(3, 2, 2)]
    draft_stats.finish(source, selected, scores, 2)
    target = SimpleNamespace()
    draft_stats.hand_over(source, target)
    stats = attached.cycle_for(target).nodes
    assert stats is not None
    entropies = torch.stack([
        uncertainty(first, RULE).entropy,
        *uncertainty(second, RULE).entropy.view(3, 2).T,
    ], dim=1)  # fmt: skip
    flat = torch.cat(scores, 1).flatten(1)
    for b in range(3):
        for node, candidate in enumerate(selected[b].tolist()):
            if candidate >= 0:
                assert stats.entropy([4 * b + node]) == [entropies[b, candidate // 2]]
                assert stats.paths()[b, node] == flat[b, candidate]


def test_a_replayed_graph_gives_the_same_statistics_as_a_plain_draft(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft graph is captured once for four requests and replayed for three others."""
    served(Mode(RULE))
    monkeypatch.setattr(draft_stats, "_may_wait", lambda logits, mode: False)
    torch.manual_seed(4)
    runner, steps, batch = SimpleNamespace(topk=2), 3, 4
    static = [torch.zeros(batch * 2, DRAFT_VOCABULARY) for _ in range(steps - 1)]
    selected = torch.randint(0, 2 + 8, (batch, 6)).sort(1).values
    scores = [torch.zeros(batch, 1, 2), torch.zeros(batch, 2, 2), torch.zeros(batch, 2, 2)]
    captured = SimpleNamespace()
    for logits in static:
        draft_stats.step(worker(), captured, logits)
    draft_stats.finish(captured, selected, scores, 2)
    draft_stats.keep_graph_outputs(runner, batch, captured)
    graphs = attached.of(runner, CapturedGraphs)
    assert graphs is not None
    graph = graphs.by_batch[batch]

    real = [torch.randn(3 * 2, DRAFT_VOCABULARY) for _ in range(steps - 1)]
    real_scores = [torch.rand(3, *part.shape[1:]) for part in scores]
    opening = torch.randn(3, DRAFT_VOCABULARY)
    replayed, plain = SimpleNamespace(), SimpleNamespace()
    for source in (replayed, plain):
        draft_stats.first(worker(), source, opening)
    # What a replay does: it fills the captured tensors in place, rows of padding included.
    for stats, logits in zip(graph.steps, real, strict=True):
        padded = torch.cat([logits, torch.randn(2, DRAFT_VOCABULARY)])
        fresh = DraftLogits(padded, RULE, TO_TARGET, VOCABULARY).stats()
        for old, new in zip(stats.parts(), fresh.parts(), strict=True):
            old.copy_(new)
    graph.scores[:3] = torch.cat(real_scores, 1).flatten(1)
    out = (None, selected, None)
    draft_stats.take_graph_outputs(runner, batch, 3, replayed, out)
    for logits in real:
        draft_stats.step(worker(), plain, logits)
    draft_stats.finish(plain, selected[:3], real_scores, 2)
    nodes, again = (attached.cycle_for(source).nodes for source in (plain, replayed))
    assert isinstance(nodes, KnownNodes)
    assert isinstance(again, KnownNodes)
    assert torch.equal(nodes.paths(), again.paths())
    for a, b in zip(nodes.table.parts(), again.table.parts(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("topk", "pruned"), [(2, True), (2, False), (1, True), (1, False)])
def test_statistics_that_waited_are_those_of_a_plain_draft(
    served: Any, monkeypatch: pytest.MonkeyPatch, topk: int, pruned: bool, residual: bool
) -> None:
    """Of three requests' trees of as many nodes as distributions, and chains; some nodes pruned."""
    served(Mode(EasdRule(2.0, 2.0, top_n=6, residual=residual)))
    torch.manual_seed(6)
    count = 1 + 2 * topk
    candidates = torch.rand(3, count * topk).argsort(1)[:, :count]
    selected = torch.arange(3).repeat(3, 1) if topk == 1 else candidates.sort(1).values
    if pruned:
        selected[0, 1:] = selected[2, 2] = -1
    scores = [torch.rand(3, 1, topk), *torch.rand(2, 3, topk, topk)]
    opening, deeper = torch.randn(3, DRAFT_VOCABULARY), torch.randn(2, 3 * topk, DRAFT_VOCABULARY)
    drafts = {}
    for waits in (False, True):
        monkeypatch.setattr(draft_stats, "_may_wait", lambda logits, mode, waits=waits: waits)
        source = drafts[waits] = SimpleNamespace()
        draft_stats.first(worker(), source, opening)
        for logits in deeper:
            draft_stats.step(worker(), source, logits)
        draft_stats.finish(source, selected, scores, topk)
    plain, waited = (attached.cycle_for(drafts[waits]).nodes for waits in (False, True))
    assert isinstance(plain, KnownNodes)
    assert isinstance(waited, WaitingNodes)
    kept = (selected >= 0).flatten().nonzero().squeeze(1).tolist()
    # All at once, and in another order.
    for nodes in (kept, kept[::-2]):
        assert waited.entropy(nodes) == pytest.approx(plain.entropy(nodes))
        assert waited.nats(nodes) == pytest.approx(plain.nats(nodes))
        assert torch.equal(waited.top_ids(nodes), plain.top_ids(nodes))
        if residual:
            torch.testing.assert_close(waited.probs(nodes), plain.probs(nodes))
    assert torch.equal(waited.paths(), plain.paths())


@pytest.mark.parametrize("waits", [False, True])
def test_rows_follow_their_requests_through_filter_and_merge(
    served: Any, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    monkeypatch.setattr(draft_stats, "_may_wait", lambda logits, mode: waits)
    served(Mode(EasdRule(2.0, 2.0, top_n=6, residual=True)))
    torch.manual_seed(5)
    logits = torch.randn(5, DRAFT_VOCABULARY)
    a, b, empty = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
    draft_stats.first(worker(), a, logits[:3])
    draft_stats.first(worker(), b, logits[3:])
    draft_stats.filter_rows(a, torch.tensor([2, 0]))
    draft_stats.merge(a, empty)
    draft_stats.merge(a, b)
    draft_stats.filter_rows(a, slice(3))
    draft_stats.merge(empty, a)
    rule = EasdRule(2.0, 2.0, top_n=6, residual=True)
    expected = DraftLogits(logits[[2, 0, 3]], rule, TO_TARGET, VOCABULARY).stats()
    for carrier in (a, empty):
        stats = attached.cycle_for(carrier).first
        assert isinstance(stats, DraftLogits if waits else DraftStats)
        if isinstance(stats, DraftLogits):
            stats = stats.stats()
        for got, want in zip(stats.parts(), expected.parts(), strict=True):
            assert torch.equal(got, want)
