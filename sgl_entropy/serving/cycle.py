"""One draft-verify cycle of a batch, as one object.

It is made when the distribution of its first drafted tokens is known (the last row of the draft
extend after a prompt or a verification), rides on the engine's draft input while requests join and
leave the batch, is handed to the verification, and is read when each request is closed
(``outcome``). ``attached`` says where it rides.

Shapes: b requests, topk branches, R = 1 + (steps - 1) * topk distributions a cycle in the order of
the tree's parent list, n nodes a request (the root and n - 1 drafted tokens).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sgl_entropy.entropy import entropy_of_rows, shannon_entropy
from sgl_entropy.serving.draft_logits import DraftLogits, DraftStats
from sgl_entropy.serving.draft_nodes import DraftNodes, KnownNodes, WaitingNodes
from sgl_entropy.serving.trees import DraftTree

if TYPE_CHECKING:
    from sgl_entropy.serving.verification import Verification

# Either is computed at once, or on a CPU when it is asked for.
Distributions = DraftStats | DraftLogits


@dataclass(frozen=True)
class TargetEntropy:
    """The target's entropy at nodes of a batch, computed once a cycle for all who ask.

    Attributes:
        rows: flat numbers of the nodes, ascending.
        nats: float32 [rows].
        at: the same as plain numbers, by node.
    """

    rows: Sequence[int]
    nats: Tensor
    at: dict[int, float]

    @classmethod
    def of(cls, logits: Tensor, rows: Sequence[int]) -> TargetEntropy:
        """Of the target's raw ``logits`` [b * n, vocabulary] at ``rows``."""
        # The whole batch needs no copy.
        whole = len(rows) == len(logits)
        nats = shannon_entropy(logits) if whole else entropy_of_rows(logits, rows)
        return cls(rows, nats, dict(zip(rows, nats.tolist(), strict=True)))


@dataclass
class Cycle:
    """One cycle. Without an entropy mode and a second drafter it holds ``tree`` and ``verified``.

    Attributes:
        first: distributions of the first drafted tokens, one row a request. None: not asked for,
            or not known because a draft graph is being captured.
        steps: distributions of the deeper tokens, [b * topk] rows a draft step.
        scores: [b, candidates], while a draft graph is captured.
        ended: bool [b], the chains that have ended early.
        nodes: the drafter's statistics at the drafted nodes; None until the draft is finished.
        drafter: the number of the drafter that drafted; None = the server has one.
        tree: the drafted tokens and their links; None until verification begins.
        verified: nodes of each request that are verified, root included; None = all.
        target: the target's entropy, where the mode or the choice of a drafter asks for it.
        verification: what the entropy mode found; None = verification is exact and not traced.
        broken: whether each node's logits were not finite; None = all were.
    """

    first: Distributions | None = None
    steps: list[Distributions] = field(default_factory=list)
    scores: Tensor | None = None
    ended: Tensor | None = None
    nodes: DraftNodes | None = None
    drafter: int | None = None
    tree: DraftTree | None = None
    verified: list[int] | None = None
    target: TargetEntropy | None = None
    verification: Verification | None = None
    broken: list[bool] | None = None

    def keep_rows(self, index: Any) -> None:
        """Keep the rows of the requests that stay; ``index``: a tensor [requests], or a slice."""
        if self.first is not None:
            self.first = self.first.rows(index)

    def merge(self, other: Cycle | None) -> None:
        """Append another batch's rows; either may have none."""
        more = None if other is None else other.first
        if self.first is None or more is None:
            self.first = more if self.first is None else self.first
        else:
            # Both are kept in the same way, because the mode and the device are the same.
            self.first = cast(DraftStats, self.first).joined(cast(DraftStats, more))

    def draft_entropy(self, step: int) -> Tensor | None:
        """float32 [b], nats, of the distributions that a chain's token ``step`` (from 0) came from.

        None: not known, because a draft graph is being captured.
        """
        if self.first is None:
            return None
        # A draft that may end early has its statistics computed at once.
        stats = cast(DraftStats, self.first if step == 0 else self.steps[step - 1])
        return stats.nats

    def fill(self, count: int) -> None:
        """Stand for ``count`` draft steps that were not taken; nothing reads these."""
        last = self.steps[-1] if self.steps else self.first
        assert last is not None
        self.steps += [last] * count

    def finish(self, selected: Tensor, scores: Sequence[Tensor], topk: int) -> None:
        """From the cycle's distributions to one entry for each drafted node.

        Args:
            selected: [b, n - 1] candidate numbers, -1 = pruned; candidate c was drafted from
                distribution c // topk.
            scores: [b, ., topk] each, the drafter's probability of every candidate's path.
        """
        if self.first is None:
            self.scores = torch.cat(tuple(scores), dim=1).flatten(1)
            return
        steps, self.steps = self.steps, []
        if isinstance(self.first, DraftLogits):
            waiting = [self.first, *cast(list[DraftLogits], steps)]
            self.nodes = WaitingNodes(waiting, selected, tuple(scores), topk)
        else:
            flat = torch.cat(tuple(scores), dim=1).flatten(1)
            self._join(cast(list[DraftStats], steps), selected, flat, topk)

    def replay(self, graph: GraphOutputs, used: int, selected: Tensor, topk: int) -> None:
        """Finish a draft that was replayed from a graph.

        Args:
            graph: the tensors that the replay filled; used: how many of its requests are real.
            selected: [used, n - 1], as in ``finish``.
        """
        steps = [stats.rows(slice(used * topk)) for stats in graph.steps]
        self._join(steps, selected, graph.scores[:used], topk)

    def _join(
        self, steps: Sequence[DraftStats], selected: Tensor, scores: Tensor, topk: int
    ) -> None:
        first = cast(DraftStats, self.first)
        known = selected.clamp_min(0)
        request = torch.arange(len(selected), device=selected.device).unsqueeze(1)
        table = _table(first, steps, topk).rows((request, known // topk))
        self.nodes = KnownNodes(table, scores.gather(1, known))

    def mean_target_entropy(self, nodes: Iterable[int]) -> float:
        """Nats, over those of ``nodes`` (flat numbers) where it is known; NaN = nowhere."""
        known = self.target_entropies(nodes)
        return sum(known) / len(known) if known else math.nan

    def target_entropies(self, nodes: Iterable[int]) -> list[float]:
        """Nats, at those of ``nodes`` where it is a known finite number, in their order."""
        if self.target is None:
            return []
        at = self.target.at
        return [nats for node in nodes if math.isfinite(nats := at.get(node, math.nan))]


@dataclass(frozen=True)
class GraphOutputs:
    """The tensors of one captured draft graph that each replay fills.

    Attributes:
        steps: statistics of each draft step, [b * topk] rows.
        scores: [b, candidates], the drafter's probability of every candidate's path.
    """

    steps: list[DraftStats]
    scores: Tensor

    @classmethod
    def captured(cls, cycle: Cycle) -> GraphOutputs:
        """From the cycle whose draft was just captured."""
        assert cycle.scores is not None, "the draft was not finished"
        return cls(cast(list[DraftStats], cycle.steps), cycle.scores)


def _table(first: DraftStats, steps: Sequence[DraftStats], topk: int) -> DraftStats:
    """[b, R, ...] of all distributions of a cycle."""
    batch = len(first.entropy)
    columns = [[t.unsqueeze(1) for t in first.parts()]]
    for stats in steps:
        columns.append([t.unflatten(0, (batch, topk)) for t in stats.parts()])
    return DraftStats(*(torch.cat(column, dim=1) for column in zip(*columns, strict=True)))
