"""The drafter's uncertainty at every drafted token, from where it is known to where it is used.

A token is drafted from one distribution: the first ones of a cycle from the last row of the draft
extend (of the prompt, or after a verification), the deeper ones from the draft steps. What EASD
needs of it is kept here: per request beside ``topk_p`` in ``EagleDraftInput`` until the next
draft, then per drafted node in ``EagleVerifyInput``. Nothing is computed without an entropy mode.

Shapes: b requests, topk branches, R = 1 + (steps - 1) * topk distributions a cycle in the order
of the tree's parent list, nodes = draft tokens without the root.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving.draft_logits import DraftLogits, DraftStats
from sgl_entropy.serving.draft_nodes import DraftNodes, KnownNodes, WaitingNodes
from sgl_entropy.serving.mode import Mode
from sgl_entropy.serving.mode_time import timed

# Attributes on SGLang's EagleDraftInput and EagleVerifyInput.
_FIRST, _STEPS, _SCORES = "sgl_entropy_first", "sgl_entropy_steps", "sgl_entropy_scores"
_NODES = "sgl_entropy_drafted"
# ... and on the runner of draft graphs.
_GRAPHS = "sgl_entropy_graph_stats"


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
    held = getattr(draft_input, _FIRST, None)
    if held is None:
        # A graph is being captured: its first distributions are known when it is replayed.
        setattr(draft_input, _SCORES, torch.cat(scores, dim=1).flatten(1))
        return
    steps = getattr(draft_input, _STEPS, None) or []
    setattr(draft_input, _STEPS, None)
    if isinstance(held, DraftLogits):
        cycle = [held, *cast(list[DraftLogits], steps)]
        setattr(draft_input, _NODES, WaitingNodes(cycle, selected, tuple(scores), topk))
    else:
        _join(draft_input, steps, selected, torch.cat(scores, dim=1).flatten(1), topk)


def _join(
    draft_input: Any, steps: list[DraftStats], selected: Tensor, scores: Tensor, topk: int
) -> None:
    known = selected.clamp_min(0)
    request = torch.arange(len(selected), device=selected.device).unsqueeze(1)
    table = _table(getattr(draft_input, _FIRST), steps, topk).rows((request, known // topk))
    setattr(draft_input, _NODES, KnownNodes(table, scores.gather(1, known)))


def _table(first: DraftStats, steps: list[DraftStats], topk: int) -> DraftStats:
    """[b, R, ...] of all distributions of a cycle."""
    batch = len(first.entropy)
    columns = [[t.unsqueeze(1) for t in first.parts()]]
    for stats in steps:
        columns.append([t.unflatten(0, (batch, topk)) for t in stats.parts()])
    return DraftStats(*(torch.cat(column, dim=1) for column in zip(*columns, strict=True)))


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


@timed
def hand_over(draft_input: Any, verify_input: Any) -> None:
    """From the draft's input to the verification's."""
    setattr(verify_input, _NODES, getattr(draft_input, _NODES, None))


def of_nodes(verify_input: Any) -> DraftNodes | None:
    """Statistics of the drafted nodes; None without an entropy mode."""
    nodes: DraftNodes | None = getattr(verify_input, _NODES, None)
    return nodes


@timed
def filter_rows(draft_input: Any, index: Any) -> None:
    """Keep the rows of the requests that stay; ``index``: a tensor, or a slice."""
    held = getattr(draft_input, _FIRST, None)
    if held is not None:
        setattr(draft_input, _FIRST, held.rows(index))


@timed
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


def _stats(worker: Any, logits: Tensor, mode: Mode) -> DraftStats | DraftLogits:
    vocab = worker.target_worker.model_runner.model_config.vocab_size
    held = DraftLogits(logits, mode.rule, worker.hot_token_id, vocab)
    return held if _may_wait(logits, mode) else held.stats()
