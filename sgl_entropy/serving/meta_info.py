"""A request's counts on their way from the scheduler into its response's ``meta_info``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sgl_entropy.serving.outcome import DrafterCycle
from sgl_entropy.verify.trace import CycleRecord


class EasdMeta(NamedTuple):
    """Counts of an entropy mode; ``target_entropy``: mean nats, None = nothing emitted."""

    checks: int
    fires: int
    relaxed: int
    target_entropy: float | None

    def add_to(self, shown: dict[str, Any]) -> None:
        """Add them under the names that users see."""
        shown["easd_checks"] = self.checks
        shown["easd_fires"] = self.fires
        shown["easd_relaxed"] = self.relaxed
        shown["easd_target_entropy"] = self.target_entropy


class SpecMeta(NamedTuple):
    """Counts of speculation at one moment; see ``counters.SpecCounters``.

    Attributes:
        cycles_by_drafter: by the drafter's name; None = one drafter is served.
    """

    cycles: int
    drafted: int
    emitted: int
    accepted_by_position: tuple[int, ...]
    easd: EasdMeta | None
    cycles_by_drafter: dict[str, int] | None

    def to_dict(self) -> dict[str, Any]:
        """As ``/get_server_info`` shows them."""
        out: dict[str, Any] = {
            "cycles": self.cycles,
            "drafted": self.drafted,
            "emitted": self.emitted,
            "accepted_by_position": list(self.accepted_by_position),
        }
        if self.easd is not None:
            self.easd.add_to(out)
        if self.cycles_by_drafter is not None:
            out["cycles_by_drafter"] = dict(self.cycles_by_drafter)
        return out


class RequestMeta(NamedTuple):
    """What one response says of its request.

    Attributes:
        trace: its cycles, if it asked for them and has finished; likewise ``drafters``.
    """

    spec: SpecMeta
    trace: tuple[CycleRecord, ...]
    drafters: tuple[DrafterCycle, ...]

    def add_to(self, meta_info: dict[str, Any]) -> None:
        """Add them under the names that users see."""
        spec = self.spec
        meta_info["spec_cycles"] = spec.cycles
        meta_info["spec_drafted"] = spec.drafted
        meta_info["spec_emitted"] = spec.emitted
        meta_info["spec_accepted_by_position"] = list(spec.accepted_by_position)
        if spec.easd is not None:
            spec.easd.add_to(meta_info)
        if self.trace:
            # A chain accepts as many tokens at most as it drafts.
            drafted = len(spec.accepted_by_position)
            meta_info["spec_trace"] = [cycle.to_dict(drafted) for cycle in self.trace]
        if spec.cycles_by_drafter is not None:
            meta_info["spec_cycles_by_drafter"] = dict(spec.cycles_by_drafter)
        if self.drafters:
            meta_info["spec_drafters"] = [cycle.to_dict() for cycle in self.drafters]


@dataclass(frozen=True)
class MessageMeta:
    """Of the requests of one message to the detokenizer, in its order; None = not counted yet."""

    of_requests: tuple[RequestMeta | None, ...]
