"""What requests ask of their verification, and what one verification found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sgl_entropy.serving.mode import Mode
from sgl_entropy.verify.easd import Thresholds
from sgl_entropy.verify.rule import EasdRule

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        rule: None = it is verified exactly.
        traced: its cycles are recorded.
        target_entropy, draft_entropy, overlap: the rule's, rounded to float32 as ``Thresholds``
            are.
    """

    rule: EasdRule | None
    traced: bool
    target_entropy: float
    draft_entropy: float
    overlap: float


@dataclass
class Cycle:
    """One verification of b requests of n nodes; nodes are flat numbers, request * n + node.

    Attributes:
        asked: of each request.
        nodes: n.
        child: of each node, its first drafted token, as a node of its request; -1 = none. Empty
            where no request asks for anything.
        entropy: the target's, nats, where something asked for it.
        fire: ``decide`` leaves those that stood.
        relaxed: where acceptance was relaxed to take the drafted token.
        token_prob: the target's probability of the first drafted token below, raw and at
            temperature 1, where something asked for it.
        overlap: likewise.
    """

    mode: Mode
    asked: list[Asked]
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


def of_request(req: Req, mode: Mode) -> Asked:
    """What a request asks for; read once, when it is first verified."""
    held: Asked | None = getattr(req, "sgl_entropy_asked", None)
    if held is None:
        given = req.sampling_params.custom_params
        given = given if isinstance(given, dict) else {}
        rule = mode.rule.of_request(given.get("easd")) if mode.verifies else None
        limits = Thresholds.of([rule])
        held = req.sgl_entropy_asked = Asked(
            rule,
            given.get("spec_trace") is True,
            limits.target_entropy.item(),
            limits.draft_entropy.item(),
            limits.overlap.item(),
        )
    return held
