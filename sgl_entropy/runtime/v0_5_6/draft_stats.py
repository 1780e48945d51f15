"""The drafter's uncertainty at every drafted token: how the engine's draft fills its ``Cycle``.

A token is drafted from one distribution: the first ones of a cycle from the last row of the draft
extend (of the prompt, or after a verification), the deeper ones from the draft steps. The cycle
rides beside ``topk_p`` on ``EagleDraftInput`` until the next draft, then on ``EagleVerifyInput``.
Nothing is computed without an entropy mode.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sgl_entropy.runtime.v0_5_6.modes import served_mode
from sgl_entropy.serving import attached
from sgl_entropy.serving.attached import CapturedGraphs
from sgl_entropy.serving.cycle import Cycle, Distributions, GraphOutputs
from sgl_entropy.serving.draft_logits import DraftLogits
from sgl_entropy.serving.mode import Mode
from sgl_entropy.serving.mode_time import timed


@timed
def first(worker: Any, draft_input: Any, logits: Tensor) -> None:
    """Begin a cycle with the distributions that its first tokens come from.

    Args:
        logits: [b, draft vocab], the draft extend's.
    """
    mode = served_mode()
    if mode is not None:
        attached.put(draft_input, Cycle(first=_distributions(worker, logits, mode)))


@timed
def step(worker: Any, draft_input: Any, logits: Tensor) -> None:
    """Add those of one draft step's ``logits`` [b * topk, draft vocab]."""
    mode = served_mode()
    if mode is not None:
        attached.cycle_for(draft_input).steps.append(_distributions(worker, logits, mode))


@timed
def finish(draft_input: Any, selected: Tensor, scores: list[Tensor], topk: int) -> None:
    """From the cycle's distributions to one entry a drafted node; see ``Cycle.finish``."""
    if served_mode() is not None:
        attached.cycle_for(draft_input).finish(selected, scores, topk)


def keep_graph_outputs(runner: Any, batch: int, draft_input: Any) -> None:
    """While a draft graph of ``batch`` requests is captured: keep the tensors that it will fill."""
    if served_mode() is None:
        return
    graphs = attached.of(runner, CapturedGraphs)
    if graphs is None:
        graphs = CapturedGraphs()
        attached.put(runner, graphs)
    # The next run of the capture begins with an empty cycle.
    cycle = attached.take(draft_input, Cycle)
    assert cycle is not None
    graphs.by_batch[batch] = GraphOutputs.captured(cycle)


@timed
def take_graph_outputs(runner: Any, batch: int, used: int, draft_input: Any, out: Any) -> None:
    """After a replay: what it filled, of its first ``used`` requests.

    Args:
        out: the graph's own outputs, of which the second is ``selected``.
    """
    if served_mode() is None:
        return
    graphs, cycle = attached.of(runner, CapturedGraphs), attached.of(draft_input, Cycle)
    assert graphs is not None
    assert cycle is not None
    cycle.replay(graphs.by_batch[batch], used, out[1][:used], runner.topk)


@timed
def hand_over(draft_input: Any, verify_input: Any) -> None:
    """From the draft's input to the verification's."""
    attached.hand_over(draft_input, verify_input)


@timed
def filter_rows(draft_input: Any, index: Any) -> None:
    """Keep the rows of the requests that stay; ``index``: a tensor, or a slice."""
    cycle = attached.of(draft_input, Cycle)
    if cycle is not None:
        cycle.keep_rows(index)


@timed
def merge(draft_input: Any, other: Any) -> None:
    """Append another batch's rows to these; either may be without any."""
    more = attached.of(other, Cycle)
    if more is not None:
        attached.cycle_for(draft_input).merge(more)


def _may_wait(logits: Tensor, mode: Mode) -> bool:
    # A draft that may end early asks at every step; a graph's statistics are a part of it.
    return logits.device.type == "cpu" and mode.stop is None


def _distributions(worker: Any, logits: Tensor, mode: Mode) -> Distributions:
    vocab = worker.target_worker.model_runner.model_config.vocab_size
    waiting = DraftLogits(logits, mode.rule, worker.hot_token_id, vocab)
    return waiting if _may_wait(logits, mode) else waiting.stats()
