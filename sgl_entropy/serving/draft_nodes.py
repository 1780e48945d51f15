"""The drafter's statistics at the drafted nodes of a batch: in a table, or computed when asked for.

Nodes are named by flat numbers, request * (drafted nodes a request) + node, the root not counted.
Only verified nodes may be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sgl_entropy.serving.draft_logits import DraftLogits, DraftStats


class DraftNodes(Protocol):
    """Statistics of b requests with n drafted nodes each."""

    def entropy(self, nodes: Sequence[int]) -> list[float]:
        """Of the distribution that each node was drafted from, in the rule's unit."""

    def nats(self, nodes: Sequence[int]) -> list[float]:
        """The same in nats."""

    def top_ids(self, nodes: Sequence[int]) -> Tensor:
        """int64 [nodes, N], ids of the target."""

    def probs(self, nodes: Sequence[int]) -> Tensor:
        """float32 [nodes, vocabulary], over the target's; under ``residual`` alone."""

    def paths(self) -> Tensor:
        """[b, n], the drafter's probability of the path to each node."""


@dataclass(frozen=True)
class KnownNodes:
    """Statistics [b, n, ...] that were computed for all nodes."""

    table: DraftStats
    path_probs: Tensor

    def entropy(self, nodes: Sequence[int]) -> list[float]:
        return self._at(self.table.entropy, nodes).tolist()

    def nats(self, nodes: Sequence[int]) -> list[float]:
        return self._at(self.table.nats, nodes).tolist()

    def top_ids(self, nodes: Sequence[int]) -> Tensor:
        return self._at(self.table.top_ids, nodes)

    def probs(self, nodes: Sequence[int]) -> Tensor:
        assert self.table.probs is not None
        return self._at(self.table.probs, nodes)

    def paths(self) -> Tensor:
        return self.path_probs

    def _at(self, part: Tensor, nodes: Sequence[int]) -> Tensor:
        return part.flatten(0, 1)[list(nodes)]


@dataclass(frozen=True)
class WaitingNodes:
    """Nodes of distributions whose statistics wait until they are asked for (CPU).

    Most positions need none of them: the target is sure there, or the node is pruned. On a CPU a
    small batch spends more time in calls than in what they compute.

    Attributes:
        distributions: of the cycle's first step [b, draft vocab], then of each other
            [b * topk, draft vocab].
        selected: [b, n] candidate numbers, -1 = pruned; candidate c was drafted from
            distribution c // topk.
        scores: [b, ., topk] each, the drafter's probability of every candidate's path.
    """

    distributions: Sequence[DraftLogits]
    selected: Tensor
    scores: Sequence[Tensor]
    topk: int

    def entropy(self, nodes: Sequence[int]) -> list[float]:
        drafted = self._of(nodes)
        return drafted.compared(drafted.nats()).tolist()

    def nats(self, nodes: Sequence[int]) -> list[float]:
        return self._of(nodes).nats().tolist()

    def top_ids(self, nodes: Sequence[int]) -> Tensor:
        return self._of(nodes).top_ids()

    def probs(self, nodes: Sequence[int]) -> Tensor:
        return self._of(nodes).probs()

    def paths(self) -> Tensor:
        scores = torch.cat(tuple(self.scores), dim=1).flatten(1)
        return scores.gather(1, self.selected.clamp_min(0))

    @cached_property
    def _candidates(self) -> list[int]:
        return self.selected.flatten().tolist()

    def _of(self, nodes: Sequence[int]) -> DraftLogits:
        """One distribution for each node."""
        first, rows = self.distributions[0], []
        for node in nodes:
            request, number = node // self.selected.shape[1], self._candidates[node] // self.topk
            assert number >= 0, f"drafted node {node} was pruned: it has no statistics"
            if number == 0:
                rows.append(first.logits[request])
            else:
                step, branch = divmod(number - 1, self.topk)
                rows.append(self.distributions[1 + step].logits[request * self.topk + branch])
        return DraftLogits(torch.stack(rows), first.rule, first.to_target, first.vocab)
