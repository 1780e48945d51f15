"""EASD on the nodes of a served batch decides as the plain walk along one chain does."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_entropy import entropy
from sgl_entropy.runtime.v0_5_6 import draft_stats, easd
from sgl_entropy.serving import attached
from sgl_entropy.serving.asked import Asked
from sgl_entropy.serving.cycle import TargetEntropy
from sgl_entropy.serving.draft_nodes import WaitingNodes
from sgl_entropy.serving.draws import draw, request_probs
from sgl_entropy.serving.mode import Mode
from sgl_entropy.serving.outcome import CheckCounts, CycleOutcome, outcome
from sgl_entropy.verify.easd import Uncertainty, Walk, uncertainty, verify_chain, without
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord
from tests.runtime.chi_square import p_value
from tests.runtime.easd_batches import (
    DRAFT_VOCABULARY,
    NODES,
    RULE,
    TO_TARGET,
    VOCABULARY,
    checks,
    closed,
    drafted_batch,
    requests,
    walk,
    worker,
)
from tests.runtime.test_sampling import settings

REQUESTS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_p": 0.8},
    {"top_k": 5, "min_p": 0.1},
]
CUSTOM: list[Any] = [
    None,
    {"easd": False},
    {"easd": {"target_entropy": 1.0, "overlap": 0.0}},
    {"easd": True, "other": 1, "spec_trace": True},
    {"easd": {"draft_entropy": 0.0}},
]


def one_batch(seed: int, rule: EasdRule) -> list[tuple[Walk, list[int], CheckCounts]]:
    """Verify a random batch both ways: (reference, tokens, what was recorded) a request."""
    torch.manual_seed(seed)
    custom = CUSTOM * 4
    batch = len(custom)
    kinds = [REQUESTS[(seed + i) % len(REQUESTS)] for i in range(batch)]
    info = settings(*kinds)
    scale = 0.5 + 2.0 * torch.rand(batch, NODES, 1)
    raw = scale * torch.randn(batch, NODES, VOCABULARY)
    # The drafter resembles the target, so that their likeliest tokens overlap.
    draft_logits = raw[:, :-1, TO_TARGET] + 0.2 * torch.randn(batch, NODES - 1, DRAFT_VOCABULARY)
    tokens = torch.cat([torch.zeros(batch, 1).long(), TO_TARGET[draft_logits.argmax(-1)]], dim=1)
    live = [int(torch.randint(1, NODES + 1, ())) for _ in range(batch)]
    masked = raw.clone()
    # A penalty and a grammar: they change what is drawn, never what is uncertain.
    masked[1] -= torch.randn(VOCABULARY).abs()
    masked[2, :, torch.randperm(VOCABULARY)[:30]] = -math.inf
    masked[2] = torch.where(torch.isneginf(masked[2]), masked[2], raw[2])
    coins = torch.rand(2, batch, NODES)
    flat = masked.view(-1, VOCABULARY)
    probs = request_probs(flat, info, torch.arange(batch).repeat_interleave(NODES))
    chosen = draw(probs, coins[0].flatten()).view(batch, NODES)
    draft = drafted_batch(draft_logits, tokens, live)
    asked = requests(custom)
    cycle = easd.begin(draft, asked, raw.view(-1, VOCABULARY))
    assert cycle is not None
    assert cycle.verification is not None
    easd.decide(cycle, draft, flat, chosen, info, coins[1].flatten())
    out = []
    for i, (emitted, path) in enumerate(walk(draft, chosen)):
        own = cycle.verification.asked[i].rule
        k = live[i] - 1
        drafter = uncertainty(draft_logits[i, :k], rule, TO_TARGET - torch.arange(len(TO_TARGET)))
        wide = torch.zeros(k, VOCABULARY)
        wide[:, TO_TARGET] = torch.softmax(draft_logits[i, :k], -1)
        greedy = int(info.top_ks[i]) == 1
        law = torch.softmax(masked[i], -1) if greedy else probs.view(batch, NODES, -1)[i]
        expected = verify_chain(
            raw[i, : k + 1],
            law[: k + 1],
            tokens[i, 1 : k + 1],
            Uncertainty(drafter.entropy, drafter.top_ids),
            own,
            None if greedy else coins[:, i, : k + 1],
            wide,
        )  # fmt: skip
        out.append((expected, emitted, checks(closed(draft, asked, i, path, len(emitted)))))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        EasdRule(0.5, 0.4, top_n=6, overlap=0.3, normalised=True),
        EasdRule(2.0, 1.8, top_n=6, overlap=0.3, accepted_only=True),
        EasdRule(2.0, 1.8, top_n=6, overlap=0.3, residual=True),
        EasdRule(2.0, 1.8, top_n=6, overlap=0.3, residual=True, accepted_only=True),
    ],
    ids=["plain", "normalised", "accepted_only", "residual", "residual_accepted"],
)
def test_every_token_check_and_fire_is_the_references(
    served: Any, rule: EasdRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed lengths and settings in one batch; over 2,000 checked positions a rule."""
    served(Mode(rule))
    checked = fired = 0
    for seed in range(560 if rule.accepted_only else 160):
        # By turns as on a CPU and as on a GPU, where the drafter's statistics do not wait.
        monkeypatch.setattr(draft_stats, "_may_wait", lambda *_, waits=seed % 2 == 0: waits)
        for expected, emitted, found in one_batch(seed, rule):
            assert emitted == expected.tokens, seed
            assert found.checks == expected.checked, seed
            assert found.fires == (expected.fired is not None), seed
            checked += expected.checked
            fired += expected.fired is not None
    assert checked >= 2000
    assert fired >= 200


def test_a_rule_that_cannot_fire_changes_nothing(served: Any) -> None:
    served(Mode(EasdRule(1e9, 1e9, top_n=6, overlap=1.0)))
    for seed in range(40):
        torch.manual_seed(seed)
        raw = torch.randn(2 * NODES, VOCABULARY)
        tokens = raw.argmax(-1).view(2, NODES)
        draft = drafted_batch(torch.randn(2, NODES - 1, DRAFT_VOCABULARY), tokens, [5, 3])
        links = draft.retrive_next_token.clone()
        chosen, before = tokens.roll(-1, 1).clone(), tokens.roll(-1, 1)
        cycle = easd.begin(draft, requests([None, None]), raw)
        easd.decide(cycle, draft, raw, chosen, settings({"top_k": 1}, {}))
        assert torch.equal(chosen, before)
        assert torch.equal(draft.retrive_next_token, links)


def sampled(served: Any, broken: bool) -> float:
    """p of the emitted token's law where the rule always fires: P_t without the drafted token."""
    served(Mode(EasdRule(0.0, 0.0, top_n=6, overlap=0.0)))
    torch.manual_seed(1)
    draws = 4000
    logits = torch.randn(2, VOCABULARY)
    raw = logits.repeat(draws, 1)
    drafted = int(logits[0].argmax())
    info = settings(*[{"temperature": 0.9}] * draws)
    probs = request_probs(raw, info, torch.arange(draws).repeat_interleave(2))
    chosen = draw(probs, torch.rand(2 * draws)).view(draws, 2)
    tokens = torch.tensor([0, drafted]).repeat(draws, 1)
    draft = drafted_batch(torch.randn(draws, 1, DRAFT_VOCABULARY), tokens, [2] * draws)
    if broken:
        # The wrong residual: a second draw from all of P_t, and the draft cut off after it.
        again = draw(probs, torch.rand(2 * draws)).view(draws, 2)
        chosen[:, 0] = torch.where(chosen[:, 0] == drafted, again[:, 0], chosen[:, 0])
        draft.retrive_next_token.fill_(-1)
    else:
        cycle = easd.begin(draft, requests([None] * draws), raw)
        easd.decide(cycle, draft, raw, chosen, info)
    emitted = [tokens[0] for tokens, _ in walk(draft, chosen)]
    law, _ = without(torch.softmax(logits[:1].double() / 0.9, -1), torch.tensor([drafted]))
    return p_value(emitted, {i: float(p) for i, p in enumerate(law[0]) if p > 0})


def test_replacements_are_drawn_from_the_target_without_the_token(served: Any) -> None:
    assert sampled(served, broken=False) > 1e-4


def test_the_sampling_test_fails_on_a_wrong_residual(served: Any) -> None:
    assert sampled(served, broken=True) < 1e-6


def test_a_token_without_alternative_is_kept(served: Any) -> None:
    """A grammar leaves one token: it is emitted, the draft goes on, and nothing counts as fired."""
    served(Mode(EasdRule(0.0, 0.0, top_n=6, overlap=0.0)))
    raw = torch.randn(2 * 2, VOCABULARY)
    masked = raw.clone()
    masked[0] = -math.inf
    masked[0, 7] = masked[2, 7] = 50.0
    masked[2, :7] = masked[2, 8:] = -math.inf
    chosen = torch.tensor([[7, 3], [7, 3]])
    draft = drafted_batch(
        torch.randn(2, 1, DRAFT_VOCABULARY), torch.tensor([[0, 7], [0, 7]]), [2, 2]
    )
    batch = requests([None, None])
    cycle = easd.begin(draft, batch, raw)
    easd.decide(cycle, draft, masked, chosen, settings({"top_k": 1}, {"temperature": 0.8}))
    for i, (emitted, path) in enumerate(walk(draft, chosen)):
        found = checks(closed(draft, batch, i, path, len(emitted)))
        assert emitted == [7, 3]
        assert (found.checks, found.fires) == (1, 0)


def test_an_output_that_ends_inside_counts_what_was_emitted_alone(served: Any) -> None:
    served(Mode(EasdRule(0.0, 0.0, top_n=6, overlap=1.0)))
    raw = torch.randn(NODES, VOCABULARY)
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    draft = drafted_batch(torch.zeros(1, NODES - 1, DRAFT_VOCABULARY), tokens, [NODES])
    chosen = torch.tensor([[1, 2, 3, 4, 5]])
    batch = requests([{"spec_trace": True}])
    cycle = easd.begin(draft, batch, raw)
    assert cycle is not None
    assert cycle.verification is not None
    cycle.verification.fire.add(3)
    found = closed(draft, batch, 0, list(range(NODES)), 2)
    assert (checks(found).checks, checks(found).fires, checks(found).entropies) == (2, 0, 2)
    assert found.trace is not None
    assert found.trace.emitted == 2
    assert chosen.tolist() == [[1, 2, 3, 4, 5]]


def test_a_trace_holds_what_the_policies_replay(served: Any) -> None:
    served(Mode(EasdRule(1e9, 1e9, top_n=6, overlap=1.0)))
    torch.manual_seed(0)
    raw, draft_logits = torch.randn(NODES, VOCABULARY), torch.randn(1, NODES - 1, DRAFT_VOCABULARY)
    tokens = torch.tensor([[0, 1, 2, 3, 4]])
    draft = drafted_batch(draft_logits, tokens, [4])
    batch = requests([{"easd": False, "spec_trace": True}])
    cycle = easd.begin(draft, batch, raw)
    easd.decide(cycle, draft, raw, tokens.clone(), settings({"top_k": 1}))
    found = closed(draft, batch, 0, [0, 1], 2)
    assert checks(found).checks == 0
    assert found.trace is not None
    trace = found.trace.to_dict(NODES - 1)
    assert CycleRecord.from_dict(trace, NODES - 1) == found.trace
    want = torch.softmax(raw.double(), -1)
    assert trace["target_prob"][:3] == pytest.approx(
        [float(want[i, i + 1]) for i in range(3)], abs=2e-6
    )
    assert trace["target_entropy"][:4] == pytest.approx(
        [float(-(p * p.log()).sum()) for p in want[:4]], abs=2e-6
    )
    assert trace["draft_prob"][:3] == pytest.approx([0.5] * 3)
    law = torch.softmax(draft_logits[0].double(), -1)
    assert trace["draft_entropy"][:3] == pytest.approx(
        [float(-(p * p.log()).sum()) for p in law[:3]], abs=2e-6
    )
    mine = [set(row.topk(6).indices.tolist()) for row in raw]
    theirs = [set(TO_TARGET[row.topk(6).indices].tolist()) for row in draft_logits[0]]
    shares = [len(mine[i] & theirs[i]) / 6 for i in range(3)]
    assert trace["overlap"][:3] == pytest.approx(shares, abs=1e-5)
    assert all(trace[name][3] is None for name in ("draft_entropy", "overlap", "target_prob"))
    assert trace["target_entropy"][4] is None
    assert (trace["verified"], trace["accepted"], trace["emitted"]) == (3, 1, 2)
    assert trace["fired"] is None


def test_relaxed_acceptance_takes_the_drafted_token_where_the_target_is_sure(served: Any) -> None:
    mode = Mode(EasdRule(9.0, 9.0, top_n=6, overlap=1.0), relaxed_below=1.5)
    served(mode)
    raw = torch.full((2 * 2, VOCABULARY), -9.0)
    raw[0, 3], raw[0, 4] = 1.0, 0.5  # sure of two: both are typical
    raw[2, :20] = 1.0  # ln 20 nats: exact there
    draft = drafted_batch(
        torch.randn(2, 1, DRAFT_VOCABULARY), torch.tensor([[0, 4], [0, 4]]), [2, 2]
    )
    chosen = torch.tensor([[3, 1], [3, 1]])
    batch = requests([None, None])
    cycle = easd.begin(draft, batch, raw)
    easd.decide(cycle, draft, raw, chosen, settings({"top_k": 1}, {"top_k": 1}))
    walks = walk(draft, chosen)
    assert [emitted for emitted, _ in walks] == [[4, 1], [3]]
    found = [closed(draft, batch, i, path, len(e)) for i, (e, path) in enumerate(walks)]
    assert [checks(one).relaxed for one in found] == [1, 0]


def test_relaxed_acceptance_obeys_a_grammar_and_a_request(served: Any) -> None:
    served(Mode(EasdRule(9.0, 9.0, top_n=6, overlap=1.0), relaxed_below=1.5))
    raw = torch.full((2 * 2, VOCABULARY), -9.0)
    raw[[0, 2], 3] = 1.0
    raw[[0, 2], 4] = 0.5
    masked = raw.clone()
    masked[0, 4] = -math.inf
    draft = drafted_batch(
        torch.randn(2, 1, DRAFT_VOCABULARY), torch.tensor([[0, 4], [0, 4]]), [2, 2]
    )
    chosen = torch.tensor([[3, 1], [3, 1]])
    cycle = easd.begin(draft, requests([None, {"easd": False}]), raw)
    easd.decide(cycle, draft, masked, chosen, settings({"top_k": 1}, {"top_k": 1}))
    assert chosen.tolist() == [[3, 1], [3, 1]]


def test_without_a_mode_nothing_is_computed(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served(None)

    def never(*_: Any) -> Any:
        raise AssertionError("computed without a mode")

    monkeypatch.setattr(draft_stats, "DraftLogits", never)
    monkeypatch.setattr(TargetEntropy, "of", never)
    draft = drafted_batch(torch.randn(1, 4, DRAFT_VOCABULARY), torch.zeros(1, 5).long(), [5])
    assert easd.begin(draft, requests([None]), torch.randn(5, VOCABULARY)) is None
    easd.decide(None, draft, torch.randn(5, VOCABULARY), torch.zeros(1, 5).long(), settings({}))
    asked = Asked.read(None, None)
    found = outcome(attached.cycle_for(draft), 0, [0, -1, -1, -1, -1], 1, NODES, asked)
    assert found == CycleOutcome(drafted=4, accepted=0, emitted=1, depth=4)


@pytest.mark.parametrize("traced", [False, True])
def test_each_condition_is_computed_where_those_before_it_hold(
    served: Any, monkeypatch: pytest.MonkeyPatch, traced: bool
) -> None:
    """Two chains of 4; the target is sure at every other node, the drafter at the first two."""
    served(Mode(EasdRule(1.0, 1.0, top_n=6, overlap=1.0)))
    asked: dict[str, list[int]] = {"entropy": [], "top_ids": []}
    for name, nodes in asked.items():
        way = getattr(WaitingNodes, name)

        def noted(self: Any, some: Any, way: Any = way, nodes: Any = nodes) -> Any:
            nodes.extend(some)
            return way(self, some)

        monkeypatch.setattr(WaitingNodes, name, noted)
    raw, draft_logits = torch.zeros(2, 5, VOCABULARY), torch.zeros(2, 4, DRAFT_VOCABULARY)
    raw[:, ::2, 0] = draft_logits[:, :2, 0] = 99.0
    draft = drafted_batch(draft_logits, torch.zeros(2, 5).long(), [5, 5])
    custom = [None, {"spec_trace": True, "easd": False} if traced else None]
    cycle = easd.begin(draft, requests(custom), raw.view(-1, VOCABULARY))
    assert cycle is not None
    found = cycle.verification
    assert found is not None
    assert len(found.entropy) == (9 if traced else 8)
    # Drafted nodes 1 and 3 of each chain hang below its nodes 1 and 3.
    assert asked["entropy"] == ([1, 3] if traced else [1, 3, 5, 7])
    assert asked["top_ids"] == ([3, 4, 5, 6, 7] if traced else [3, 7])
    assert found.fire == set()
    assert set(found.token_prob) == ({5, 6, 7, 8} if traced else set())


def test_in_a_tree_the_child_that_was_drawn_is_removed_and_the_draft_dropped(served: Any) -> None:
    """Root with two children, one of which the target draws; its sibling is the runner-up."""
    served(Mode(EasdRule(0.0, 0.0, top_n=6, overlap=0.0)))
    raw = torch.zeros(3, VOCABULARY)
    raw[0, 5], raw[0, 6] = 3.0, 2.0
    source = SimpleNamespace()
    draft_stats.first(worker(), source, torch.randn(1, DRAFT_VOCABULARY))
    draft_stats.finish(source, torch.tensor([[0, 1]]), [torch.tensor([[[0.5, 0.2]]])], 2)
    draft = SimpleNamespace(
        draft_token=torch.tensor([0, 5, 6]),
        draft_token_num=3,
        retrive_index=torch.tensor([[0, 1, 2]]),
        retrive_next_token=torch.tensor([[1, -1, -1]]),
        retrive_next_sibling=torch.tensor([[-1, 2, -1]]),
    )
    draft_stats.hand_over(source, draft)
    chosen = torch.tensor([[5, 9, 9]])
    cycle = easd.begin(draft, requests([None]), raw)
    easd.decide(cycle, draft, raw, chosen, settings({"top_k": 1}))
    assert walk(draft, chosen) == [([6], [0])]


def test_with_two_drafters_the_targets_entropy_is_computed_once(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule and the choice of a drafter read the same numbers; EASD's figures stay its own."""
    served(Mode(RULE))
    rows = []
    plain = entropy._entropy

    def counted(logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[-1] == VOCABULARY:
            rows.append(len(logits))
        return plain(logits)

    torch.manual_seed(0)
    raw, draft_logits = torch.randn(10, VOCABULARY), torch.randn(2, 4, DRAFT_VOCABULARY)
    found = {}
    for drafter in (None, 1):
        draft = drafted_batch(draft_logits, torch.zeros(2, 5).long(), [5, 3])
        attached.cycle_for(draft).drafter = drafter
        with monkeypatch.context() as patched:
            patched.setattr(entropy, "_entropy", counted)
            cycle = easd.begin(draft, requests([None, {"easd": False}]), raw)
        assert cycle is not None
        assert cycle.verification is not None
        found[drafter] = cycle.verification.entropy
    # The nodes with a draft below in the first request; then all eight verified ones.
    assert rows == [4, 8]
    assert found[1] == pytest.approx(found[None])
