"""What of ours rides on the engine's objects: one attribute, set and read in this module alone.

====================================  ====================================================
the engine's object                   what rides on it
====================================  ====================================================
a draft's and a verification's input  ``Cycle``
a request                             ``RequestState``
a batch's sampling settings           ``BrokenRows``, while prompts are sampled
the runner of draft graphs            ``CapturedGraphs``
a message to the detokenizer and on   ``MessageMeta``
the server's arguments                ``Mode``
====================================  ====================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from sgl_entropy.serving.cycle import Cycle, GraphOutputs
from sgl_entropy.serving.request_state import RequestState

_ATTRIBUTE = "sgl_entropy"
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class BrokenRows:
    """Whether each prompt's logits were not finite."""

    rows: list[bool]


@dataclass
class CapturedGraphs:
    """Outputs of the captured draft graphs, by batch size."""

    by_batch: dict[int, GraphOutputs] = field(default_factory=dict)


def put(carrier: Any, thing: object) -> None:
    """Let ``thing`` ride on ``carrier``, in place of what did."""
    setattr(carrier, _ATTRIBUTE, thing)


def of(carrier: Any, kind: type[Kind]) -> Kind | None:
    """What rides on ``carrier``; None = nothing does."""
    thing = getattr(carrier, _ATTRIBUTE, None)
    assert thing is None or isinstance(thing, kind), f"expected {kind.__name__}, found {thing!r}"
    return thing


def take(carrier: Any, kind: type[Kind]) -> Kind | None:
    """Take off what rides on ``carrier``."""
    thing = of(carrier, kind)
    if thing is not None:
        put(carrier, None)
    return thing


def cycle_for(spec_input: Any) -> Cycle:
    """The cycle of a draft's or a verification's input; a new one if there is none."""
    cycle = of(spec_input, Cycle)
    if cycle is None:
        cycle = Cycle()
        put(spec_input, cycle)
    return cycle


def hand_over(draft_input: Any, verify_input: Any) -> None:
    """From the draft's input to the verification's."""
    put(verify_input, take(draft_input, Cycle) or Cycle())


def request_state(req: Any) -> RequestState:
    """What is kept of a request; new at its first use."""
    state = of(req, RequestState)
    if state is None:
        state = RequestState()
        put(req, state)
    return state
