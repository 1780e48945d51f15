"""What every replayed policy is: one small object that takes in a trace's requests.

A new policy is a module with a class of ``Replay``'s form, a function that makes it from
``ReplayOptions``, and one line in ``run.POLICIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.verify.replay.ledger import ReplayCosts
from sgl_entropy.verify.trace import RequestTrace

# Servers write six decimals; float32 adds its own.
ROUNDING = 2e-6


@dataclass(frozen=True)
class ReplayReport:
    """What a policy would have done.

    Attributes:
        agrees: whether the record's own counts are those of the same policy replayed; None where
            the trace was recorded under another one.
        disagreement: the first place where they are not.
        figures: the policy's own dataclass.
        notes: what a reader must know to use the figures.
    """

    agrees: bool | None
    disagreement: str | None
    figures: Any = field(metadata=FLAT)
    notes: tuple[str, ...]


class Replay(Protocol):
    """One policy, replayed over one trace."""

    def add(self, request: RequestTrace) -> None:
        """Take in the next request."""

    def report(self, costs: ReplayCosts | None) -> ReplayReport:
        """What the requests so far come to. Raises ValueError without a cycle."""


class Agreement:
    """Whether a record and its own policy's replay say the same, and where they first do not.

    Args:
        asked: False = the trace was recorded under another policy.
    """

    def __init__(self, asked: bool) -> None:
        self.disagreement: str | None = None
        self._asked = asked

    def check(
        self,
        request: RequestTrace,
        same: Callable[[float], Tensor],
        differs: Callable[[int], str],
    ) -> None:
        """Compare the cycles of one request.

        Args:
            same: bool [cycles] from a rounding error, nats. Values at a limit fall to either side
                of it once they are written with six decimals.
            differs: what was expected and found, from a cycle's number, from 0.
        """
        if not self._asked or self.disagreement is not None:
            return
        good = same(0.0)
        if not good.all():
            wrong = ~(good | same(-ROUNDING) | same(ROUNDING))
            for cycle in wrong.nonzero().flatten().tolist()[:1]:
                self.disagreement = f"request {request.rid}, cycle {cycle + 1}: {differs(cycle)}"

    @property
    def agrees(self) -> bool | None:
        return self.disagreement is None if self._asked else None

    def report(self, figures: Any, notes: Sequence[str]) -> ReplayReport:
        """A replay's report."""
        return ReplayReport(self.agrees, self.disagreement, figures, tuple(notes))


class ReplayOptions:
    """A policy's ``key=value`` settings: ``given``, as words or as JSON has them.

    Every method raises ValueError: for a value of the wrong kind, ``done`` for keys nobody read.
    """

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        self.name = name
        self.given = dict(given)
        self._known: list[str] = []

    @classmethod
    def parse(cls, word: str) -> ReplayOptions:
        """From ``name`` or ``name:key=value,key=value``."""
        name, _, rest = word.partition(":")
        given: dict[str, Any] = {}
        for part in rest.split(",") if rest else ():
            key, equals, value = part.partition("=")
            if not equals or not key or key in given:
                raise ValueError(
                    f"--policy {word}: expected NAME:KEY=VALUE,KEY=VALUE, each key once, "
                    f"found {part!r}"
                )
            given[key] = value
        return cls(name, given)

    def number(self, key: str, default: float) -> float:
        value = self.raw(key, default)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number) or isinstance(value, bool):
            raise ValueError(f"{self.name}: {key} must be a number, found {value!r}")
        return number

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if isinstance(value, bool):
            return value
        if value not in ("true", "false"):
            raise ValueError(f"{self.name}: {key} must be true or false, found {value!r}")
        return bool(value == "true")

    def choice(self, key: str, among: tuple[str, ...]) -> str:
        """The first is the default."""
        value = self.raw(key, among[0])
        if value not in among:
            raise ValueError(
                f"{self.name}: {key} must be one of {', '.join(among)}, found {value!r}"
            )
        return str(value)

    def raw(self, key: str, default: Any = None) -> Any:
        """As given."""
        self._known.append(key)
        return self.given.get(key, default)

    def done(self) -> None:
        """Nothing may be left over."""
        unknown = sorted(set(self.given) - set(self._known))
        if unknown:
            known = f"its keys are {', '.join(self._known)}" if self._known else "it has none"
            raise ValueError(f"{self.name}: unknown key {', '.join(unknown)}; {known}")
