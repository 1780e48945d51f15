"""Verification under an entropy mode: the rule of ``verify/`` on the nodes of a served batch.

``begin`` reads the target's raw logits before anything is applied to them; ``decide`` changes the
target's tokens at the nodes where the rule fires and cuts the draft off behind them, so that the
engine's own walk ends there; ``easd_record`` tells what the walk met. Without an entropy mode
``begin`` returns None, and ``decide`` does nothing.

The conditions are taken in turn, each at the nodes where those before it hold: the target's
entropy, the drafter's, the likeliest tokens of both. What is found is kept in plain numbers, read
once a condition: on small tensors most time goes into calls on a CPU, and into waiting on a GPU.

A node is a position: the root, or a drafted token. What fires there concerns the drafted tokens
below it, of which ordinary acceptance takes the one that equals the target's draw. That one is
rejected and the draw repeated without it; where the draw is none of them it stands, since it is a
draw without the rejected token already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgl_entropy.entropy import entropy_of_rows
from sgl_entropy.runtime.v0_5_6 import draft_stats, regime
from sgl_entropy.runtime.v0_5_6.easd_cycle import Cycle, of_request
from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving.draft_nodes import DraftNodes
from sgl_entropy.serving.draws import draw, is_greedy, request_probs
from sgl_entropy.serving.mode_time import timed
from sgl_entropy.verify.easd import compared, likeliest, overlap, without

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


@timed
def begin(draft: EagleVerifyInput, batch: ScheduleBatch, logits: Tensor) -> Cycle | None:
    """Find the nodes at which the rule fires.

    Args:
        logits: [b * n, vocabulary], the target's, raw.
    """
    regime.begin(draft, logits)
    mode, stats = served_mode(), draft_stats.of_nodes(draft)
    if mode is None or stats is None:
        return None
    asked = [of_request(req, mode) for req in batch.reqs]
    if not mode.verifies and not any(one.traced for one in asked):
        return None
    cycle = draft.sgl_entropy_cycle = Cycle(mode, asked, draft.draft_token_num)
    if any(one.rule is not None or one.traced for one in asked):
        cycle.child = draft.retrive_next_token.flatten().tolist()
        _find(cycle, draft, logits, stats)
    return cycle


def _find(cycle: Cycle, draft: EagleVerifyInput, logits: Tensor, stats: DraftNodes) -> None:
    child, rule, n = cycle.child, cycle.mode.rule, cycle.nodes
    live = draft.retrive_index.flatten().tolist() if any(one.traced for one in cycle.asked) else []
    rows: list[int] = []
    for request, one in enumerate(cycle.asked):
        if one.traced or one.rule is not None:
            wanted = live if one.traced else child
            rows += [node for node in range(request * n, (request + 1) * n) if wanted[node] >= 0]
    if not rows:
        return
    nats = entropy_of_rows(logits, rows)
    entropies = nats.tolist()
    cycle.entropy = dict(zip(rows, entropies, strict=True))
    if rule.normalised:
        entropies = compared(nats, logits.shape[-1], rule).tolist()
    limits = [one.target_entropy for one in cycle.asked]
    hot = [
        node
        for node, entropy in zip(rows, entropies, strict=True)
        if entropy > limits[node // n] and child[node] >= 0
    ]
    if hot:
        known = zip(hot, stats.entropy([cycle.drafted(node) for node in hot]), strict=True)
        hot = [node for node, entropy in known if entropy > cycle.of(node).draft_entropy]
    told = [node for node in rows if cycle.of(node).traced and child[node] >= 0] if live else []
    if hot or told:
        _compare(cycle, logits, stats, hot, sorted({*hot, *told}))
    if cycle.mode.relaxed_below > 0:
        told = [node for node in rows if child[node] >= 0]
    if told:
        raw, token = logits[told], _drafted_tokens(cycle, draft, told)
        prob = (raw.gather(1, token.unsqueeze(1)).squeeze(1) - raw.logsumexp(-1)).exp().float()
        cycle.token_prob = dict(zip(told, prob.tolist(), strict=True))


def _compare(
    cycle: Cycle, logits: Tensor, stats: DraftNodes, hot: Sequence[int], nodes: Sequence[int]
) -> None:
    """The share of likeliest tokens in common at ``nodes``; of them, ``hot`` ones may fire."""
    mine = likeliest(logits[nodes], cycle.mode.rule.top_n)
    share = overlap(mine, stats.top_ids([cycle.drafted(node) for node in nodes])).tolist()
    cycle.overlap = dict(zip(nodes, share, strict=True))
    cycle.fire = {node for node in hot if cycle.overlap[node] >= cycle.of(node).overlap}


def _drafted_tokens(cycle: Cycle, draft: EagleVerifyInput, nodes: Sequence[int]) -> Tensor:
    """int64 [nodes], the first drafted token below each."""
    first = [node // cycle.nodes * cycle.nodes + cycle.child[node] for node in nodes]
    return draft.draft_token[first].long()


@timed
def decide(
    cycle: Cycle | None,
    draft: EagleVerifyInput,
    logits: Tensor,
    chosen: Tensor,
    info: SamplingBatchInfo,
    coins: Tensor | None = None,
) -> None:
    """Change the target's tokens where the mode asks for it, in place.

    Args:
        logits: [b * n, vocabulary] after bias, penalties and grammar masks.
        chosen: [b, n] the target's draw at every node; fired ones get their replacement.
        coins: [b * n] of the repeated draws of sampled requests; None = fresh ones.

    ``draft.retrive_next_token`` loses the links below fired nodes.
    """
    if cycle is None:
        return
    if cycle.mode.relaxed_below > 0:
        _relax(cycle, draft, logits, chosen)
    if not cycle.fire:
        return
    rejected = _rejected(cycle, draft, chosen)
    if rejected:
        where = torch.tensor(list(rejected), device=logits.device)
        token = torch.tensor(list(rejected.values()), device=logits.device)
        replaced, some = _replace(cycle, draft, logits[where], token, where, info, coins)
        chosen.view(-1)[where] = torch.where(
            some, replaced.to(chosen.dtype), chosen.view(-1)[where]
        )
        # A token without alternative is kept.
        cycle.fire -= {node for node, left in zip(rejected, some.tolist(), strict=True) if not left}
    if cycle.fire:
        ends = torch.tensor(sorted(cycle.fire), device=logits.device)
        draft.retrive_next_token[ends // cycle.nodes, ends % cycle.nodes] = -1


def _relax(cycle: Cycle, draft: EagleVerifyInput, logits: Tensor, chosen: Tensor) -> None:
    """Let the target's token be the drafted one where typical acceptance takes that."""
    mode = cycle.mode
    at = [
        node
        for node in cycle.token_prob
        if cycle.of(node).rule is not None
        and node not in cycle.fire
        and cycle.entropy[node] < mode.relaxed_below
    ]
    if not at:
        return
    prob, entropy = (
        torch.tensor([held[node] for node in at]) for held in (cycle.token_prob, cycle.entropy)
    )
    wanted = _drafted_tokens(cycle, draft, at)
    allowed = (logits[at].gather(1, wanted.unsqueeze(1)) > -math.inf).squeeze(1).tolist()
    takes = mode.typical.accepts(prob, entropy).tolist()
    below, drawn = _children(cycle, draft, at), chosen.flatten().tolist()
    for node, token, accepts, may in zip(at, wanted.tolist(), takes, allowed, strict=True):
        # Another drafted token that the target drew is accepted as it is.
        if accepts and may and drawn[node] not in below[node]:
            cycle.relaxed.add(node)
            chosen[node // cycle.nodes, node % cycle.nodes] = token


def _children(cycle: Cycle, draft: EagleVerifyInput, nodes: Sequence[int]) -> dict[int, list[int]]:
    """The drafted tokens below each node, in their order."""
    tokens, sibling = draft.draft_token.tolist(), draft.retrive_next_sibling.flatten().tolist()
    found = {}
    for node in nodes:
        first, at, below = node // cycle.nodes * cycle.nodes, cycle.child[node], []
        while at != -1:
            below.append(tokens[first + at])
            at = sibling[first + at]
        found[node] = below
    return found


def _rejected(cycle: Cycle, draft: EagleVerifyInput, chosen: Tensor) -> dict[int, int]:
    """The token that each fired node rejects; none where the draw is none of the drafted ones."""
    rule, drawn, out = cycle.mode.rule, chosen.flatten().tolist(), {}
    for node, below in _children(cycle, draft, sorted(cycle.fire)).items():
        if drawn[node] in below:
            out[node] = drawn[node]
        elif rule.accepted_only:
            cycle.fire.discard(node)
        elif rule.residual:
            out[node] = below[0]
    return out


def _replace(
    cycle: Cycle,
    draft: EagleVerifyInput,
    logits: Tensor,
    token: Tensor,
    where: Tensor,
    info: SamplingBatchInfo,
    coins: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draws without the rejected tokens: [rows] int64, and whether anything was left to draw."""
    request = where // cycle.nodes
    greedy = is_greedy(info)[request]
    probs = request_probs(logits, info, request)
    # A greedy request's filter holds the rejected token alone; its runner-up is the raw second.
    probs = torch.where(greedy.unsqueeze(1), torch.softmax(logits, dim=-1), probs)
    beside = None
    if cycle.mode.rule.residual:
        stats = draft_stats.of_nodes(draft)
        assert stats is not None
        beside = stats.probs([cycle.drafted(node) for node in where.tolist()])
    left, some = without(probs, token, beside)
    mode = left.argmax(-1)
    if bool(greedy.all()):
        return mode, some
    thrown = torch.rand(len(left), device=left.device) if coins is None else coins[where]
    return torch.where(greedy, mode, draw(left, thrown)), some
