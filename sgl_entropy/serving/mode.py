"""What drafting and verification of a server follow: the entropy mode."""

from __future__ import annotations

from dataclasses import dataclass, field

from sgl_entropy.verify.policies import DraftStop, Typical
from sgl_entropy.verify.rule import EasdRule


@dataclass(frozen=True)
class Mode:
    """The entropy mode of one server.

    Attributes:
        rule: the server's, which requests may change. If verification is exact: the rule that the
            statistics of a trace are computed with.
        relaxed_below: nats of the target's entropy; 0 = acceptance is never relaxed.
        typical: the relaxed acceptance.
        chain: drafts are chains, not trees.
        verifies: EASD is on.
        stop: when chains end; None = at their full length.
    """

    rule: EasdRule
    relaxed_below: float = 0.0
    typical: Typical = field(default_factory=Typical)
    chain: bool = True
    verifies: bool = True
    stop: DraftStop | None = None
