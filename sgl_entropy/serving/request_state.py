"""What is kept of one request from cycle to cycle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sgl_entropy.serving.asked import Asked
from sgl_entropy.serving.counters import RequestCounters
from sgl_entropy.serving.mode import Mode


@dataclass
class RequestState:
    """One request.

    Attributes:
        asked: what it asks for; None until its first verification.
        counters: None until its first cycle is counted.
        missed: rows that the idle one of two drafters has not read, (ids [n], features
            [n, tap width]) a cycle, oldest first; see ``missed``.
        broken: it ended because its logits were not finite.
    """

    asked: Asked | None = None
    counters: RequestCounters | None = None
    missed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    broken: bool = False

    def asks(self, custom: Any, mode: Mode | None) -> Asked:
        """What it asks for, read from its ``custom_params`` once."""
        if self.asked is None:
            self.asked = Asked.read(custom, mode)
        return self.asked
