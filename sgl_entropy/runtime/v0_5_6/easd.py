"""Verification under an entropy mode: the rule of ``verify/`` on the nodes of a served batch.

``begin`` reads the target's raw logits before anything is applied to them; ``decide`` changes the
target's tokens at the nodes where the rule fires and cuts the draft off behind them, so that the
engine's own walk ends there; ``easd_record`` tells what the walk met. Without an entropy mode
``begin`` returns None, and ``decide`` does nothing.

A node is a position: the root, or a drafted token. What fires there concerns the drafted tokens
below it, of which ordinary acceptance takes the one that equals the target's draw. That one is
rejected and the draw repeated without it; where the draw is none of them it stands, since it is a
draw without the rejected token already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.runtime.v0_5_6 import draft_stats, regime
from sgl_entropy.runtime.v0_5_6.draft_stats import DraftStats
from sgl_entropy.runtime.v0_5_6.mode_time import timed
from sgl_entropy.runtime.v0_5_6.modes import Mode, served_mode
from sgl_entropy.runtime.v0_5_6.sampling import draw, is_greedy, request_probs
from sgl_entropy.verify.easd import Thresholds, overlap, without
from sgl_entropy.verify.rule import EasdRule

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
    from sglang.srt.speculative.eagle_info import EagleVerifyInput


@dataclass
class Cycle:
    """One verification of b requests of n nodes.

    Attributes:
        rules: of each request; None = it is verified exactly.
        traced: of each request, whether its cycles are recorded.
        child: int64 [b, n], each node's first drafted token, as a node; -1 = none.
        entropy: float32 [b, n], the target's, nats; NaN where nothing asked for it.
        fire: bool [b, n]; ``decide`` leaves those that stood.
        relaxed: bool [b, n], where acceptance was relaxed to take the drafted token.
        token_prob: float32 [b, n], the target's probability of the first drafted token below,
            raw and at temperature 1; NaN where nothing asked for it.
        overlap: float32 [b, n] likewise.
    """

    mode: Mode
    rules: list[EasdRule | None]
    traced: list[bool]
    child: Tensor
    entropy: Tensor
    fire: Tensor
    relaxed: Tensor
    token_prob: Tensor
    overlap: Tensor


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
    if not mode.verifies and not any(traced for _, traced in asked):
        return None
    cycle = Cycle(
        mode,
        [rule for rule, _ in asked],
        [traced for _, traced in asked],
        draft.retrive_next_token.long().clone(),
        *_blank(draft.retrive_next_token, logits.device),
    )
    draft.sgl_entropy_cycle = cycle
    if any(rule is not None for rule in cycle.rules) or any(cycle.traced):
        _find(cycle, draft, logits, stats)
    return cycle


def _blank(like: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    unknown = torch.full(like.shape, float("nan"), device=device)
    no = torch.zeros(like.shape, dtype=torch.bool, device=device)
    return unknown, no, no.clone(), unknown.clone(), unknown.clone()


def _find(cycle: Cycle, draft: EagleVerifyInput, logits: Tensor, stats: DraftStats) -> None:
    rule, device = cycle.mode.rule, logits.device
    on = torch.tensor([rule is not None for rule in cycle.rules], device=device).unsqueeze(1)
    traced = torch.tensor(cycle.traced, device=device).unsqueeze(1)
    has = cycle.child >= 0
    rows = ((has & on) | ((draft.retrive_index >= 0) & traced)).flatten().nonzero().squeeze(1)
    if not len(rows):
        return
    raw = _rows(logits, rows)
    entropy = shannon_entropy(raw)
    cycle.entropy.view(-1)[rows] = entropy
    # A drafted node's distribution is the one at its parent.
    below = (cycle.child - 1).clamp_min(0)
    draft_entropy = stats.entropy.gather(1, below)
    limits = Thresholds.of(cycle.rules)
    compared = cycle.entropy / _most(logits.shape[-1], rule)
    hot = (
        has
        & on
        & (compared > limits.target_entropy.to(device).unsqueeze(1))
        & (draft_entropy > limits.draft_entropy.to(device).unsqueeze(1))
    )
    deep = (hot | (has & traced)).flatten()[rows]
    at = rows[deep]
    if len(at):
        nodes = draft.draft_token_num
        request, node = at // nodes, at % nodes
        mine = raw[deep].topk(rule.top_n, dim=-1).indices
        share = overlap(mine, stats.top_ids[request, below[request, node]])
        cycle.overlap.view(-1)[at] = share
        fired = hot.view(-1)[at] & (share >= limits.overlap.to(device)[request])
        cycle.fire.view(-1)[at] = fired
    if cycle.mode.relaxed_below > 0 or any(cycle.traced):
        some = has.flatten()[rows]
        at, part = rows[some], raw[some]
        tokens = draft.draft_token.view_as(cycle.child).gather(1, cycle.child.clamp_min(0))
        wanted = tokens.flatten()[at].long().unsqueeze(1)
        cycle.token_prob.view(-1)[at] = (
            (part.gather(1, wanted).squeeze(1) - part.logsumexp(-1)).exp().float()
        )


def _rows(logits: Tensor, rows: Tensor) -> Tensor:
    """``logits[rows]``, without a copy where they lie together on a CPU."""
    if logits.device.type != "cpu":
        return logits[rows]
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return logits[first : last + 1]
    return logits.index_select(0, rows)


def _most(vocab: int, rule: EasdRule) -> float:
    return math.log(vocab) if rule.normalised else 1.0


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
    fired = cycle.fire.flatten().nonzero().squeeze(1)
    if not len(fired):
        return
    nodes = draft.draft_token_num
    request, node = fired // nodes, fired % nodes
    rejected = _rejected(cycle, draft, chosen, request.tolist(), node.tolist())
    again = torch.tensor([token >= 0 for token in rejected], device=fired.device)
    if bool(again.any()):
        token = torch.tensor([t for t in rejected if t >= 0], device=fired.device)
        where, whose = fired[again], request[again]
        replaced, some = _replace(cycle, draft, logits[where], token, whose, where, info, coins)
        chosen.view(-1)[where] = torch.where(
            some, replaced.to(chosen.dtype), chosen.view(-1)[where]
        )
        # A token without alternative stands.
        cycle.fire.view(-1)[where] = some
    draft.retrive_next_token.masked_fill_(cycle.fire, -1)


def _relax(cycle: Cycle, draft: EagleVerifyInput, logits: Tensor, chosen: Tensor) -> None:
    """Let the target's token be the drafted one where typical acceptance takes that."""
    mode = cycle.mode
    on = torch.tensor([rule is not None for rule in cycle.rules], device=logits.device)
    takes = (
        (cycle.child >= 0)
        & on.unsqueeze(1)
        & ~cycle.fire
        & (cycle.entropy < mode.relaxed_below)
        & mode.typical.accepts(cycle.token_prob, cycle.entropy)
    )
    tokens = draft.draft_token.view_as(cycle.child)
    wanted = tokens.gather(1, cycle.child.clamp_min(0)).long()
    allowed = logits.view(*cycle.child.shape, -1).gather(2, wanted.unsqueeze(2)).squeeze(2)
    takes &= ~torch.isneginf(allowed)
    for request, node in takes.nonzero().tolist():
        drafted = _children(draft, request, node)
        # Another drafted token that the target drew is accepted as it is.
        if int(chosen[request, node]) in drafted:
            takes[request, node] = False
    cycle.relaxed = takes
    chosen[takes] = wanted[takes].to(chosen.dtype)


def _children(draft: EagleVerifyInput, request: int, node: int) -> list[int]:
    """The drafted tokens below a node, in their order."""
    tokens = draft.draft_token.view_as(draft.retrive_next_token)
    out, at = [], int(draft.retrive_next_token[request, node])
    while at != -1:
        out.append(int(tokens[request, at]))
        at = int(draft.retrive_next_sibling[request, at])
    return out


def _rejected(
    cycle: Cycle, draft: EagleVerifyInput, chosen: Tensor, requests: list[int], nodes: list[int]
) -> list[int]:
    """The token that each fired node rejects; -1 = the draw is none of the drafted ones."""
    out = []
    for request, node in zip(requests, nodes, strict=True):
        drafted, token = _children(draft, request, node), int(chosen[request, node])
        if token in drafted:
            out.append(token)
            continue
        if cycle.mode.rule.accepted_only:
            cycle.fire[request, node] = False
        out.append(drafted[0] if cycle.mode.rule.residual and cycle.fire[request, node] else -1)
    return out


def _replace(
    cycle: Cycle,
    draft: EagleVerifyInput,
    logits: Tensor,
    token: Tensor,
    request: Tensor,
    where: Tensor,
    info: SamplingBatchInfo,
    coins: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draws without the rejected tokens: [rows] int64, and whether anything was left to draw."""
    greedy = is_greedy(info)[request]
    probs = request_probs(logits, info, request)
    # A greedy request's filter holds the rejected token alone; its runner-up is the raw second.
    probs = torch.where(greedy.unsqueeze(1), torch.softmax(logits, dim=-1), probs)
    beside = None
    if cycle.mode.rule.residual:
        stats = draft_stats.of_nodes(draft)
        assert stats is not None
        assert stats.probs is not None
        below = (cycle.child.view(-1)[where] - 1).clamp_min(0)
        beside = stats.probs[request, below]
    left, some = without(probs, token, beside)
    mode = left.argmax(-1)
    if bool(greedy.all()):
        return mode, some
    thrown = torch.rand(len(left), device=left.device) if coins is None else coins[where]
    return torch.where(greedy, mode, draw(left, thrown)), some


def of_request(req: Req, mode: Mode) -> tuple[EasdRule | None, bool]:
    """A request's rule, and whether its cycles are traced; read once, when it is first verified."""
    held: tuple[EasdRule | None, bool] | None = getattr(req, "sgl_entropy_asked", None)
    if held is None:
        given = req.sampling_params.custom_params
        given = given if isinstance(given, dict) else {}
        rule = mode.rule.of_request(given.get("easd")) if mode.verifies else None
        held = (rule, given.get("spec_trace") is True)
        req.sgl_entropy_asked = held
    return held
