"""What a server knew and did at every verify cycle: the trace file of drafted chains.

JSON Lines: a header, then one line a request (``trace_file`` reads and writes them). A line is an
object with exactly the keys that the dataclasses here name. Of a chain of k drafted tokens the
first ``verified`` were verified; lists have k entries (``target_entropy`` k + 1) in the file, null
after those of verified tokens. Entropies are in nats and probabilities those of raw logits, both
at temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sgl_entropy.base.typed_json import from_json
from sgl_entropy.verify.rule import EasdRule

FORMAT = 1
KIND = "sgl-entropy spec trace"

# Sums of float32 may end slightly out of range.
_SLACK = 1e-3
_LISTS = ("draft_entropy", "draft_prob", "overlap", "target_prob", "target_entropy")
_COUNTS = ("verified", "accepted", "emitted", "checked")
_CYCLE = {*_LISTS, *_COUNTS, "fired"}


@dataclass(frozen=True)
class TraceHeader:
    """How a trace was recorded.

    Attributes:
        target, drafter: as the server names them; None = not said.
        draft_tokens: k: of a whole chain.
        top_n: N of the overlap.
        rule: EASD's, in force for every request; None = ordinary acceptance.
        draft_stop: ``{"name": ..., setting: value, ...}``; None = chains of full length.
        temperature: of the requests.
        pruned: the server verified fewer tokens than it drafted, where rows were not worth it, so
            that ``verified`` does not tell where a chain ended. (In the file only if true.)
        relaxed_below: typical acceptance was in force below this entropy of the target, nats.
            (In the file only if above 0.)
    """

    target: str | None
    drafter: str | None
    draft_tokens: int
    top_n: int | None
    rule: EasdRule | None = None
    draft_stop: Mapping[str, Any] | None = None
    temperature: float | None = None
    pruned: bool = False
    relaxed_below: float = 0.0

    def __post_init__(self) -> None:
        _whole("draft_tokens", self.draft_tokens, 1)
        if self.top_n is not None:
            _whole("top_n", self.top_n, 1)
        if self.rule is not None and self.rule.top_n != self.top_n:
            _refuse(f"top_n {self.top_n!r} is not that of the rule, {self.rule.top_n}")
        if self.draft_stop is not None and not isinstance(self.draft_stop.get("name"), str):
            _refuse(f'draft_stop must be an object with "name", or null, found {self.draft_stop!r}')
        for name in ("temperature", "relaxed_below"):
            if (value := getattr(self, name)) is not None:
                _number(name, value, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """As the file's first line takes it."""
        out = {"format": FORMAT, "kind": KIND, **vars(self)}
        out["rule"] = None if self.rule is None else self.rule.to_dict()
        return {k: v for k, v in out.items() if v or k not in ("pruned", "relaxed_below")}

    @classmethod
    def from_dict(cls, raw: Any) -> TraceHeader:
        """Raises ValueError for another format, wrong keys and values that cannot be."""
        if not isinstance(raw, Mapping) or raw.get("kind") != KIND:
            _refuse(f'expected the header of a trace, an object with "kind": "{KIND}"')
        if raw.get("format") != FORMAT:
            _refuse(f"format {raw.get('format')!r} is not known; this version reads {FORMAT}")
        return from_json(cls, {k: v for k, v in raw.items() if k not in ("format", "kind")})


@dataclass(frozen=True)
class CycleRecord:
    """One verify cycle of one request.

    Attributes:
        draft_entropy: the drafter's, where each verified token was chosen.
        draft_prob: the drafter's probability of each.
        overlap: share of the N most likely tokens in common, at the same positions.
        target_prob: the target's probability of each, given those before it.
        target_entropy: the target's there and after the last: one entry more.
        accepted: of the verified tokens, without those after the end of a request.
        emitted: tokens that the request got: ``accepted`` + 1, or fewer where it ended within.
        checked: positions at which EASD's rule was evaluated.
        fired: the position at which it fired; None = nowhere.
    """

    draft_entropy: tuple[float, ...]
    draft_prob: tuple[float, ...]
    overlap: tuple[float, ...]
    target_prob: tuple[float, ...]
    target_entropy: tuple[float, ...]
    accepted: int
    emitted: int
    checked: int = 0
    fired: int | None = None

    @property
    def verified(self) -> int:
        """Drafted tokens that were verified."""
        return len(self.draft_prob)

    @property
    def judged(self) -> int:
        """Drafted tokens that were reached: the accepted ones, and the first that was not."""
        return min(self.emitted, self.verified)

    @property
    def ended(self) -> bool:
        """The request ended within the draft: what followed the end is not recorded."""
        return self.emitted <= self.accepted

    def to_dict(self, draft_tokens: int) -> dict[str, Any]:
        """As a request's line takes it, the lists filled up with null."""
        out: dict[str, Any] = {
            name: [*getattr(self, name), *[None] * (draft_tokens - self.verified)]
            for name in _LISTS
        }
        return out | {name: getattr(self, name) for name in (*_COUNTS, "fired")}

    @classmethod
    def from_dict(cls, raw: Any, draft_tokens: int) -> CycleRecord:
        """Raises ValueError for wrong keys and lengths, and for values that cannot be."""
        if not isinstance(raw, Mapping):
            _refuse(f"expected an object, found {raw!r:.60}")
        _check_keys(raw, _CYCLE)
        for name in _COUNTS:
            _whole(name, raw[name], 1 if name == "emitted" else 0)
        verified, accepted = raw["verified"], raw["accepted"]
        _most("verified", verified, draft_tokens, "draft_tokens")
        _most("accepted", accepted, verified, "verified")
        _most("emitted", raw["emitted"], accepted + 1, "accepted + 1")
        _most("checked", raw["checked"], verified, "verified")
        fired = raw["fired"]
        if fired is not None:
            _whole("fired", fired, 0)
            _most("fired", fired, raw["checked"] - 1, "checked - 1")
            _most("accepted", accepted, fired, "fired")
            if accepted < fired and raw["emitted"] > accepted:
                _refuse(f"accepted {accepted} ends before the position that fired, {fired}")
        values = {name: _list(name, raw[name], verified, draft_tokens) for name in _LISTS}
        return cls(
            **values,
            accepted=accepted,
            emitted=raw["emitted"],
            checked=raw["checked"],
            fired=fired,
        )


@dataclass(frozen=True)
class RequestTrace:
    """All verify cycles of one request, in order.

    Attributes:
        rid: names the request within the file.
        benchmark: the group that its prompt belongs to.
    """

    rid: str
    benchmark: str | None
    cycles: tuple[CycleRecord, ...]

    def __post_init__(self) -> None:
        for number, cycle in enumerate(self.cycles[:-1], 1):
            if cycle.ended:
                _refuse(f"cycle {number} ends the request, but others follow")

    def to_dict(self, draft_tokens: int) -> dict[str, Any]:
        return {
            "rid": self.rid,
            "benchmark": self.benchmark,
            "cycles": [cycle.to_dict(draft_tokens) for cycle in self.cycles],
        }

    @classmethod
    def from_dict(cls, raw: Any, draft_tokens: int) -> RequestTrace:
        """Raises ValueError; names the cycle, counted from 1."""
        if not isinstance(raw, Mapping):
            _refuse(f"expected an object, found {raw!r:.60}")
        _check_keys(raw, {"rid", "benchmark", "cycles"})
        rid, benchmark, given = raw["rid"], raw["benchmark"], raw["cycles"]
        if not isinstance(rid, str) or not rid:
            _refuse(f"rid must be a string, found {rid!r}")
        if not isinstance(benchmark, (str, type(None))):
            _refuse(f"benchmark must be a string or null, found {benchmark!r}")
        if not isinstance(given, list):
            _refuse(f"cycles must be a list, found {given!r:.60}")
        cycles = []
        for number, cycle in enumerate(given, 1):
            try:
                cycles.append(CycleRecord.from_dict(cycle, draft_tokens))
            except ValueError as error:
                _refuse(f"cycle {number}: {error}")
        return cls(rid, benchmark, tuple(cycles))


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _check_keys(raw: Mapping[str, Any], keys: set[str]) -> None:
    if missing := sorted(keys - set(raw)):
        _refuse(f"missing key {', '.join(missing)}")
    if unknown := sorted(set(raw) - keys):
        _refuse(f"unknown key {', '.join(unknown)}")


def _whole(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        _refuse(f"{name} must be a whole number from {least}, found {value!r}")


def _most(name: str, value: int, most: int, what: str) -> None:
    if value > most:
        _refuse(f"{name} must be at most {what} ({most}), found {value}")


def _number(name: str, value: Any, most: float) -> float:
    if not _within(value, most):
        top = "" if math.isinf(most) else f" to {math.floor(most)}"
        _refuse(f"{name} must be a number from 0{top}, found {value!r}")
    return float(value)


def _within(value: Any, most: float) -> bool:
    return type(value) in (int, float) and -_SLACK <= value <= most and not math.isinf(value)


def _list(name: str, value: Any, verified: int, tokens: int) -> tuple[float, ...]:
    more = name == "target_entropy"
    used, length = verified + more, tokens + more
    if not isinstance(value, list) or len(value) != length:
        found = f"one of {len(value)}" if isinstance(value, list) else f"{value!r:.40}"
        _refuse(f"{name} must be a list of {length}, found {found}")
    if any(entry is not None for entry in value[used:]):
        _refuse(f"{name} must be null after the {verified} verified tokens")
    most = math.inf if name.endswith("entropy") else 1 + _SLACK
    for at, entry in enumerate(value[:used]):
        if not _within(entry, most):
            _number(f"{name}[{at}]", entry, most)
    return tuple(value[:used])
