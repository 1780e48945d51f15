"""The drafter's uncertainty at every drafted token, from where it is known to where it is used.

A token is drafted from one distribution: the first ones of a cycle from the last row of the draft
extend (of the prompt, or after a verification), the deeper ones from the draft steps. What EASD
needs of it is kept here: per request beside ``topk_p`` in ``EagleDraftInput`` until the next
draft, then per drafted node in ``EagleVerifyInput``. Nothing is computed without an entropy mode.

Shapes: b requests, topk branches, R = 1 + (steps - 1) * topk distributions a cycle in the order
of the tree's parent list, nodes = draft tokens without the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sgl_entropy.runtime.v0_5_6.mode_time import timed
from sgl_entropy.runtime.v0_5_6.modes import Mode, served_mode
from sgl_entropy.verify.easd import uncertainty
from sgl_entropy.verify.rule import EasdRule

# Attributes on SGLang's EagleDraftInput and EagleVerifyInput.
_FIRST, _STEPS, _SCORES = "sgl_entropy_first", "sgl_entropy_steps", "sgl_entropy_scores"
_NODES, _PATHS = "sgl_entropy_drafted", "sgl_entropy_paths"
# ... and on the runner of draft graphs.
_GRAPHS = "sgl_entropy_graph_stats"


@dataclass(frozen=True)
class DraftStats:
    """Statistics of draft distributions, [..., b or b * topk] leading.

    Attributes:
        entropy: float32 [n, ...], as the rule wants it; nats: in nats whatever the rule wants.
        top_ids: int64 [n, ..., N], ids of the target.
        probs: float32 [n, ..., vocabulary], over the target's, for ``residual`` alone.
    """

    entropy: Tensor
    nats: Tensor
    top_ids: Tensor
    probs: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """The tensors that are there, in the order of the fields."""
        return [t for t in (self.entropy, self.nats, self.top_ids, self.probs) if t is not None]

    def rows(self, index: Any) -> DraftStats:
        """Those at ``index`` of the first dimension."""
        return DraftStats(*(t[index] for t in self.parts()))

    def joined(self, other: DraftStats) -> DraftStats:
        """These, then the other's."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return DraftStats(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class Waiting:
    """Draft distributions whose statistics wait until it is known which of them are needed.

    On a CPU, most of their cost is that of many small calls, and of nodes that are then pruned.

    Attributes:
        logits: [n, draft vocab], raw.
        rule, to_target, vocab: see ``of_logits``.
    """

    logits: Tensor
    rule: EasdRule
    to_target: Tensor | None
    vocab: int

    def rows(self, index: Any) -> Waiting:
        """Those at ``index`` of the first dimension."""
        return replace(self, logits=self.logits[index])

    def joined(self, other: Waiting) -> Waiting:
        """These, then the other's."""
        return replace(self, logits=torch.cat((self.logits, other.logits)))


def of_logits(logits: Tensor, rule: EasdRule, to_target: Tensor | None, vocab: int) -> DraftStats:
    """Statistics of raw draft logits [n, draft vocab].

    Args:
        to_target: int64 [draft vocab], each draft id's id of the target; None = the same.
        vocab: the target's, for ``residual``.
    """
    held = uncertainty(logits, rule)
    ids = held.top_ids
    if to_target is not None:
        padded = rule.top_n > logits.shape[-1]
        ids = torch.where(ids >= 0, to_target[ids.clamp_min(0)], ids) if padded else to_target[ids]
    probs = None
    if rule.residual:
        probs = torch.softmax(logits.float(), dim=-1)
        if to_target is not None:
            wide = probs.new_zeros(len(probs), vocab)
            probs = wide.index_copy_(1, to_target, probs)
    nats = held.entropy * math.log(max(2, logits.shape[-1])) if rule.normalised else held.entropy
    return DraftStats(held.entropy, nats, ids, probs)


@timed
def first(worker: Any, draft_input: Any, logits: Tensor) -> None:
    """Keep the statistics of the distribution that the next cycle's first tokens come from.

    Args:
        logits: [b, draft vocab], the draft extend's.
    """
    mode = served_mode()
    if mode is not None:
        setattr(draft_input, _FIRST, _stats(worker, logits, mode))


@timed
def step(worker: Any, draft_input: Any, logits: Tensor) -> None:
    """Add those of one draft step's ``logits`` [b * topk, draft vocab]."""
    mode = served_mode()
    if mode is None:
        return
    before = getattr(draft_input, _STEPS, None) or []
    setattr(draft_input, _STEPS, [*before, _stats(worker, logits, mode)])


def entropy_at(draft_input: Any, step: int) -> Tensor | None:
    """[b], of the distributions that a chain's token ``step`` (from 0) came from, nats."""
    if step == 0:
        first_stats: DraftStats | None = getattr(draft_input, _FIRST, None)
        return None if first_stats is None else first_stats.nats
    entropy: Tensor = getattr(draft_input, _STEPS)[step - 1].nats
    return entropy


def fill(draft_input: Any, count: int) -> None:
    """Stand for ``count`` draft steps that were not taken: what nothing reads."""
    before = getattr(draft_input, _STEPS, None) or []
    last = before[-1] if before else getattr(draft_input, _FIRST)
    setattr(draft_input, _STEPS, [*before, *[last] * count])


@timed
def finish(draft_input: Any, selected: Tensor, scores: list[Tensor], topk: int) -> None:
    """From the cycle's distributions to one entry a drafted node.

    Args:
        selected: [b, nodes] candidate numbers, -1 = pruned; candidate c was drafted from
            distribution c // topk.
        scores: [b, ., topk] each, the drafter's probability of every candidate's path.
    """
    if served_mode() is None:
        return
    all_scores = torch.cat(scores, dim=1).flatten(1)
    if getattr(draft_input, _FIRST, None) is None:
        # A graph is being captured: its first distributions are known when it is replayed.
        setattr(draft_input, _SCORES, all_scores)
        return
    steps = getattr(draft_input, _STEPS, None) or []
    setattr(draft_input, _STEPS, None)
    _join(draft_input, steps, selected, all_scores, topk)


def _join(
    draft_input: Any,
    steps: list[DraftStats] | list[Waiting],
    selected: Tensor,
    scores: Tensor,
    topk: int,
) -> None:
    held, known = getattr(draft_input, _FIRST), selected.clamp_min(0)
    if isinstance(held, Waiting):
        nodes = _of_selected([held, *cast(list[Waiting], steps)], selected, topk)
    else:
        request = torch.arange(len(selected), device=selected.device).unsqueeze(1)
        table = _table(held, cast(list[DraftStats], steps), topk)
        nodes = table.rows((request, known // topk))
    setattr(draft_input, _NODES, nodes)
    setattr(draft_input, _PATHS, scores.gather(1, known))


def _table(first: DraftStats, steps: list[DraftStats], topk: int) -> DraftStats:
    """[b, R, ...] of all distributions of a cycle."""
    batch = len(first.entropy)
    columns = [[t.unsqueeze(1) for t in first.parts()]]
    for stats in steps:
        columns.append([t.unflatten(0, (batch, topk)) for t in stats.parts()])
    return DraftStats(*(torch.cat(column, dim=1) for column in zip(*columns, strict=True)))


def _of_selected(cycle: list[Waiting], selected: Tensor, topk: int) -> DraftStats:
    """[b, nodes, ...] of the selected candidates; pruned ones hold NaN and zeros."""
    first, batch = cycle[0], len(selected)
    logits = torch.cat([w.logits.unflatten(0, (batch, -1)) for w in cycle], dim=1)
    kept = selected >= 0
    request, _ = where = kept.nonzero(as_tuple=True)
    whole = topk == 1 and len(request) == selected.numel() == batch * logits.shape[1]
    # A whole chain has a node for every distribution, in their order.
    rows = logits.flatten(0, 1) if whole else logits[request, selected[where] // topk]
    stats = of_logits(rows, first.rule, first.to_target, first.vocab)
    if whole:
        return DraftStats(*(part.unflatten(0, selected.shape) for part in stats.parts()))

    def spread(part: Tensor) -> Tensor:
        out = part.new_full((*selected.shape, *part.shape[1:]), math.nan if part.dim() == 1 else 0)
        out[where] = part
        return out

    return DraftStats(*(spread(part) for part in stats.parts()))


def keep_graph_outputs(runner: Any, batch: int, draft_input: Any) -> None:
    """While a draft graph of ``batch`` requests is captured: keep the tensors that it will fill."""
    if served_mode() is None:
        return
    if not hasattr(runner, _GRAPHS):
        setattr(runner, _GRAPHS, {})
    getattr(runner, _GRAPHS)[batch] = (
        getattr(draft_input, _STEPS, None) or [],
        getattr(draft_input, _SCORES),
    )
    setattr(draft_input, _STEPS, None)


@timed
def take_graph_outputs(runner: Any, batch: int, used: int, draft_input: Any, out: Any) -> None:
    """After a replay: what it filled, of its first ``used`` requests.

    Args:
        out: the graph's own outputs, of which the second is ``selected``.
    """
    if served_mode() is None:
        return
    steps, scores = getattr(runner, _GRAPHS)[batch]
    rows = slice(used * runner.topk)
    _join(
        draft_input,
        [stats.rows(rows) for stats in steps],
        out[1][:used],
        scores[:used],
        runner.topk,
    )


def hand_over(draft_input: Any, verify_input: Any) -> None:
    """From the draft's input to the verification's."""
    for name in (_NODES, _PATHS):
        setattr(verify_input, name, getattr(draft_input, name, None))


def of_nodes(verify_input: Any) -> DraftStats | None:
    """[b, nodes, ...] of the drafted nodes; None without an entropy mode."""
    stats: DraftStats | None = getattr(verify_input, _NODES, None)
    return stats


def paths(verify_input: Any) -> Tensor:
    """[b, nodes], the drafter's probability of the path to each drafted node."""
    held: Tensor = getattr(verify_input, _PATHS)
    return held


def filter_rows(draft_input: Any, index: Any) -> None:
    """Keep the rows of the requests that stay; ``index``: a tensor, or a slice."""
    held = getattr(draft_input, _FIRST, None)
    if held is not None:
        setattr(draft_input, _FIRST, held.rows(index))


def merge(draft_input: Any, other: Any) -> None:
    """Rows of another batch behind these; either may be without any."""
    mine, more = getattr(draft_input, _FIRST, None), getattr(other, _FIRST, None)
    if mine is None or more is None:
        setattr(draft_input, _FIRST, more if mine is None else mine)
    else:
        setattr(draft_input, _FIRST, mine.joined(more))


def _may_wait(logits: Tensor, mode: Mode) -> bool:
    # A draft that may end early asks at every step; a graph's statistics are a part of it.
    return logits.device.type == "cpu" and mode.stop is None


def _stats(worker: Any, logits: Tensor, mode: Mode) -> DraftStats | Waiting:
    vocab = worker.target_worker.model_runner.model_config.vocab_size
    if _may_wait(logits, mode):
        return Waiting(logits, mode.rule, worker.hot_token_id, vocab)
    return of_logits(logits, mode.rule, worker.hot_token_id, vocab)
