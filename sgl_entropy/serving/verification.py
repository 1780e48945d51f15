"""Verification under an entropy mode: the rule of ``verify/`` on the nodes of a served batch.

``begin`` reads the target's raw logits before anything is applied to them. ``decide`` changes the
target's tokens at the nodes where the rule fires and cuts the draft off after them, so that the
engine's own walk ends there. ``outcome`` counts what the walk met.

The conditions are taken in turn, each at the nodes where those before it hold: the target's
entropy, the drafter's, the likeliest tokens of both. Results are kept in plain numbers and read
once a condition, because on small tensors a CPU spends most time in calls, and a GPU in waiting.

A node is a position: the root, or a drafted token. If the rule fires there, it concerns the
drafted tokens below, of which ordinary acceptance takes the one that equals the target's draw.
That one is rejected and the draw is repeated without it. If the draw is none of them it is kept,
because it is a draw without the rejected token already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgl_entropy.serving.asked import Asked
from sgl_entropy.serving.cycle import Cycle, TargetEntropy
from sgl_entropy.serving.draft_nodes import DraftNodes
from sgl_entropy.serving.draws import SamplingSettings, draw, is_greedy, request_probs
from sgl_entropy.serving.mode import Mode
from sgl_entropy.serving.trees import DraftTree
from sgl_entropy.verify.easd import compared, likeliest, overlap, without


@dataclass
class Verification:
    """What a mode found in one verification. Nodes are flat numbers, request * n + node.

    Attributes:
        asked: of each request.
        nodes: n.
        child: each node's first drafted token, as a node of its request; -1 = none. Empty if no
            request asks for anything.
        entropy: the target's, nats, at the nodes where a request asks for it.
        fire: nodes where the rule fires; ``decide`` drops those whose token has no alternative.
        relaxed: nodes where acceptance was relaxed to take the drafted token.
        token_prob: the target's probability of the first drafted token below, raw and at
            temperature 1, at the nodes where it is needed.
        overlap: share of the likeliest tokens in common, likewise.
    """

    mode: Mode
    asked: Sequence[Asked]
    nodes: int
    child: list[int] = field(default_factory=list)
    entropy: dict[int, float] = field(default_factory=dict)
    fire: set[int] = field(default_factory=set)
    relaxed: set[int] = field(default_factory=set)
    token_prob: dict[int, float] = field(default_factory=dict)
    overlap: dict[int, float] = field(default_factory=dict)

    def of(self, node: int) -> Asked:
        """What the node's request asks for."""
        return self.asked[node // self.nodes]

    def drafted(self, node: int) -> int:
        """The first drafted token below a node, as a number of ``DraftNodes``."""
        return node // self.nodes * (self.nodes - 1) + self.child[node] - 1


def begin(
    cycle: Cycle, tree: DraftTree, logits: Tensor, mode: Mode | None, asked: Sequence[Asked]
) -> None:
    """Compute the target's entropy where it is needed, and find the nodes where the rule fires.

    Args:
        logits: [b * n, vocabulary], the target's, raw.
        mode: None = none is served, or the drafter's statistics are not known.
        asked: of each request; not read without a mode.

    ``cycle.target`` and ``cycle.verification`` get what was found.
    """
    cycle.tree = tree
    verification, rows, traced = None, list[int](), False
    if mode is not None:
        traced = any(one.traced for one in asked)
        if mode.verifies or traced:
            verification = cycle.verification = Verification(mode, asked, tree.nodes)
    slots = tree.slots.flatten().tolist() if traced or cycle.drafter is not None else []
    if verification is not None and (traced or any(one.rule is not None for one in asked)):
        verification.child = tree.child.flatten().tolist()
        rows = _rows(verification, slots)
    wanted = rows
    if cycle.drafter is not None:
        # The next drafter is chosen from every verified node; the rule's are among them.
        wanted = sorted({*rows, *(at for at, slot in enumerate(slots) if slot >= 0)})
    if not wanted:
        return
    cycle.target = TargetEntropy.of(logits, wanted)
    if verification is not None and rows:
        _find(verification, cycle.target, rows, logits, tree, cycle.nodes)


def _rows(verification: Verification, slots: Sequence[int]) -> list[int]:
    """The nodes whose entropy a request asks for: all of a trace, else those with a draft below."""
    n, rows = verification.nodes, list[int]()
    for request, one in enumerate(verification.asked):
        if one.traced or one.rule is not None:
            wanted = slots if one.traced else verification.child
            rows += [node for node in range(request * n, (request + 1) * n) if wanted[node] >= 0]
    return rows


def _find(
    verification: Verification,
    target: TargetEntropy,
    rows: Sequence[int],
    logits: Tensor,
    tree: DraftTree,
    stats: DraftNodes | None,
) -> None:
    assert stats is not None
    child, rule, n = verification.child, verification.mode.rule, verification.nodes
    alone = len(rows) == len(target.rows)
    verification.entropy = target.at if alone else {node: target.at[node] for node in rows}
    measures = target.at
    if rule.normalised:
        shares = compared(target.nats, logits.shape[-1], rule).tolist()
        measures = dict(zip(target.rows, shares, strict=True))
    limits = [one.target_entropy for one in verification.asked]
    hot = [node for node in rows if measures[node] > limits[node // n] and child[node] >= 0]
    if hot:
        known = zip(hot, stats.entropy([verification.drafted(node) for node in hot]), strict=True)
        hot = [node for node, entropy in known if entropy > verification.of(node).draft_entropy]
    traced = list[int]()
    if any(one.traced for one in verification.asked):
        traced = [node for node in rows if verification.of(node).traced and child[node] >= 0]
    if hot or traced:
        _compare(verification, logits, stats, hot, sorted({*hot, *traced}))
    likely = traced
    if verification.mode.relaxed_below > 0:
        likely = [node for node in rows if child[node] >= 0]
    if likely:
        raw, token = logits[likely], _first_drafted(verification, tree, likely)
        prob = (raw.gather(1, token.unsqueeze(1)).squeeze(1) - raw.logsumexp(-1)).exp().float()
        verification.token_prob = dict(zip(likely, prob.tolist(), strict=True))


def _compare(
    verification: Verification,
    logits: Tensor,
    stats: DraftNodes,
    hot: Sequence[int],
    nodes: Sequence[int],
) -> None:
    """The share of likeliest tokens in common at ``nodes``; of them, ``hot`` ones may fire."""
    mine = likeliest(logits[nodes], verification.mode.rule.top_n)
    share = overlap(mine, stats.top_ids([verification.drafted(node) for node in nodes])).tolist()
    verification.overlap = dict(zip(nodes, share, strict=True))
    verification.fire = {
        node for node in hot if verification.overlap[node] >= verification.of(node).overlap
    }


def _first_drafted(verification: Verification, tree: DraftTree, nodes: Sequence[int]) -> Tensor:
    """int64 [nodes], the first drafted token below each."""
    first = [
        node // verification.nodes * verification.nodes + verification.child[node] for node in nodes
    ]
    return tree.tokens[first].long()


def decide(
    cycle: Cycle,
    logits: Tensor,
    chosen: Tensor,
    info: SamplingSettings,
    coins: Tensor | None = None,
) -> None:
    """Change the target's tokens where the mode asks for it, in place.

    Args:
        logits: [b * n, vocabulary] after bias, penalties and grammar masks.
        chosen: [b, n] the target's draw at every node; fired ones get their replacement.
        coins: [b * n] of the repeated draws of sampled requests; None = fresh ones.

    The tree's ``child`` loses the links below fired nodes.
    """
    verification, tree, stats = cycle.verification, cycle.tree, cycle.nodes
    assert verification is not None
    assert tree is not None
    if verification.mode.relaxed_below > 0:
        _relax(verification, tree, logits, chosen)
    if not verification.fire:
        return
    rejected = _rejected(verification, tree, chosen)
    if rejected:
        assert stats is not None
        where = torch.tensor(list(rejected), device=logits.device)
        token = torch.tensor(list(rejected.values()), device=logits.device)
        replaced, some = _replace(verification, stats, logits[where], token, where, info, coins)
        chosen.view(-1)[where] = torch.where(
            some, replaced.to(chosen.dtype), chosen.view(-1)[where]
        )
        # A token without alternative is kept.
        verification.fire -= {
            node for node, left in zip(rejected, some.tolist(), strict=True) if not left
        }
    if verification.fire:
        ends = torch.tensor(sorted(verification.fire), device=logits.device)
        tree.child[ends // verification.nodes, ends % verification.nodes] = -1


def _relax(verification: Verification, tree: DraftTree, logits: Tensor, chosen: Tensor) -> None:
    """Let the target's token be the drafted one where typical acceptance takes that."""
    mode = verification.mode
    at = [
        node
        for node in verification.token_prob
        if verification.of(node).rule is not None
        and node not in verification.fire
        and verification.entropy[node] < mode.relaxed_below
    ]
    if not at:
        return
    prob, entropy = (
        torch.tensor([values[node] for node in at])
        for values in (verification.token_prob, verification.entropy)
    )
    wanted = _first_drafted(verification, tree, at)
    allowed = (logits[at].gather(1, wanted.unsqueeze(1)) > -math.inf).squeeze(1).tolist()
    takes = mode.typical.accepts(prob, entropy).tolist()
    below, drawn = _children(verification, tree, at), chosen.flatten().tolist()
    for node, token, accepts, may in zip(at, wanted.tolist(), takes, allowed, strict=True):
        # Another drafted token that the target drew is accepted as it is.
        if accepts and may and drawn[node] not in below[node]:
            verification.relaxed.add(node)
            chosen[node // verification.nodes, node % verification.nodes] = token


def _children(
    verification: Verification, tree: DraftTree, nodes: Sequence[int]
) -> dict[int, list[int]]:
    """The drafted tokens below each node, in their order."""
    tokens, sibling = tree.tokens.tolist(), tree.sibling.flatten().tolist()
    children = {}
    for node in nodes:
        first, at, below = (
            node // verification.nodes * verification.nodes,
            verification.child[node],
            [],
        )
        while at != -1:
            below.append(tokens[first + at])
            at = sibling[first + at]
        children[node] = below
    return children


def _rejected(verification: Verification, tree: DraftTree, chosen: Tensor) -> dict[int, int]:
    """The token that each fired node rejects; none where the draw is none of the drafted ones."""
    rule, drawn, out = verification.mode.rule, chosen.flatten().tolist(), {}
    for node, below in _children(verification, tree, sorted(verification.fire)).items():
        if drawn[node] in below:
            out[node] = drawn[node]
        elif rule.accepted_only:
            verification.fire.discard(node)
        elif rule.residual:
            out[node] = below[0]
    return out


def _replace(
    verification: Verification,
    stats: DraftNodes,
    logits: Tensor,
    token: Tensor,
    where: Tensor,
    info: SamplingSettings,
    coins: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draws without the rejected tokens: [rows] int64, and whether anything was left to draw."""
    request = where // verification.nodes
    greedy = is_greedy(info)[request]
    probs = request_probs(logits, info, request)
    # A greedy request's filter leaves the rejected token alone; its runner-up is the raw second.
    probs = torch.where(greedy.unsqueeze(1), torch.softmax(logits, dim=-1), probs)
    beside = None
    if verification.mode.rule.residual:
        beside = stats.probs([verification.drafted(node) for node in where.tolist()])
    left, some = without(probs, token, beside)
    mode = left.argmax(-1)
    if bool(greedy.all()):
        return mode, some
    thrown = torch.rand(len(left), device=left.device) if coins is None else coins[where]
    return torch.where(greedy, mode, draw(left, thrown)), some
