"""What a request asks for in its ``custom_params``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sgl_entropy.serving.mode import Mode
from sgl_entropy.verify.easd import Thresholds
from sgl_entropy.verify.rule import EasdRule


@dataclass(frozen=True)
class Asked:
    """What a request asks for, as this server serves it.

    Attributes:
        rule: None = it is verified exactly.
        traced: its cycles are recorded (``spec_trace``).
        drafters: its response shows which drafter drafted each cycle (``spec_drafters``).
        target_entropy, draft_entropy, overlap: the rule's thresholds, rounded to float32 as those
            of ``Thresholds`` are.
    """

    rule: EasdRule | None
    traced: bool
    drafters: bool
    target_entropy: float
    draft_entropy: float
    overlap: float

    @classmethod
    def read(cls, custom: Any, mode: Mode | None) -> Asked:
        """From ``custom_params``, which ``request_checks`` has seen; without a mode, no rule."""
        given = custom if isinstance(custom, dict) else {}
        serves_easd = mode is not None and mode.verifies
        rule = mode.rule.of_request(given.get("easd")) if mode is not None and serves_easd else None
        limits = Thresholds.of([rule])
        return cls(
            rule,
            mode is not None and given.get("spec_trace") is True,
            given.get("spec_drafters") is True,
            limits.target_entropy.item(),
            limits.draft_entropy.item(),
            limits.overlap.item(),
        )
