"""What every replayed policy is: one small object that a trace's requests are given to.

A new policy is one module with a class of ``Replay``'s form and a function that makes it from
``ReplayOptions``, and one line in ``replay.POLICIES``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sgl_entropy.verify.replay.ledger import Costs
from sgl_entropy.verify.trace import CycleRecord, RequestTrace

# Servers write six decimals; float32 adds its own.
ROUNDING = 2e-6


@dataclass(frozen=True)
class ReplayReport:
    """What a policy would have done.

    Attributes:
        figures: as JSON takes them: numbers, {recorded, under} pairs, lists of rows.
        agrees: whether the record's own counts are those of the same policy replayed; None where
            the trace was recorded under another one.
        disagreement: the first place where they are not.
        notes: what a reader must know to use the figures.
    """

    figures: Mapping[str, Any]
    agrees: bool | None = None
    disagreement: str | None = None
    notes: tuple[str, ...] = ()


class Replay(Protocol):
    """One policy, replayed over one trace."""

    def add(self, request: RequestTrace) -> None:
        """Take in the next request."""

    def report(self, costs: Costs | None) -> ReplayReport:
        """What the requests so far come to. Raises ValueError without a cycle."""


class Agreement:
    """Whether a record and its own policy's replay say the same, and where they first do not."""

    def __init__(self, asked: bool) -> None:
        self.disagreement: str | None = None
        self._asked = asked

    def differs(self, request: RequestTrace, cycle: int, what: str) -> None:
        """At ``cycle``, counted from 0; ``what`` says what was expected and found."""
        if self._asked and self.disagreement is None:
            self.disagreement = f"request {request.rid}, cycle {cycle + 1}: {what}"

    @property
    def agrees(self) -> bool | None:
        return self.disagreement is None if self._asked else None


class ReplayOptions:
    """A policy's ``key=value`` settings: ``given``, as words or as JSON has them.

    Raises:
        ValueError: of every method, for values that are none and keys that nobody read.
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
        value = self._take(key, default)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number) or isinstance(value, bool):
            raise ValueError(f"{self.name}: {key} must be a number, found {value!r}")
        return number

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if isinstance(value, bool):
            return value
        if value not in ("true", "false"):
            raise ValueError(f"{self.name}: {key} must be true or false, found {value!r}")
        return bool(value == "true")

    def choice(self, key: str, among: tuple[str, ...]) -> str:
        """The first is the default."""
        value = self._take(key, among[0])
        if value not in among:
            raise ValueError(
                f"{self.name}: {key} must be one of {', '.join(among)}, found {value!r}"
            )
        return str(value)

    def raw(self, key: str, default: Any = None) -> Any:
        return self._take(key, default)

    def has(self, key: str) -> bool:
        return key in self.given

    def done(self) -> None:
        """Nothing may be left over."""
        unknown = sorted(set(self.given) - set(self._known))
        if unknown:
            known = f"its keys are {', '.join(self._known)}" if self._known else "it has none"
            raise ValueError(f"{self.name}: unknown key {', '.join(unknown)}; {known}")

    def _take(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self.given.get(key, default)


def table(cycles: tuple[CycleRecord, ...], name: str, width: int) -> Tensor:
    """float32 [cycles, width] of one list of the cycles, NaN behind its end.

    float32 as in the engine, so that comparisons with thresholds come out as they did there.
    """
    rows = [getattr(cycle, name) for cycle in cycles]
    filled = [[*row, *[math.nan] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float32).reshape(len(rows), width)


def column(cycles: tuple[CycleRecord, ...], name: str) -> Tensor:
    """int64 [cycles] of one count; None is -1."""
    values = [getattr(cycle, name) for cycle in cycles]
    return torch.tensor([-1 if value is None else value for value in values], dtype=torch.long)
