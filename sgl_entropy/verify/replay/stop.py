"""Dynamic draft length, replayed: where each chain would have ended, and what that saves and loses.

Exact for each recorded cycle by itself: the depth at which the request would have stopped (the
token that stops is kept), the draft steps saved, and the tokens lost, which are those accepted
behind that depth: verification is exact, and the target's own token behind the stop is the first
of them. What losing them costs later is ``ledger``'s estimate. Under EASD a lost token would have
been checked at another position, so there the loss is an estimate as well.

Draft steps are counted as a batch of one takes them. In a larger batch the chain goes on until
every request in it has stopped; a trace does not say which requests were together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.verify.policies import CalibratedStop, DraftStep, DraftStop, NoStop, Svip
from sgl_entropy.verify.replay.ledger import Costs, CycleCounts, Ledger
from sgl_entropy.verify.replay.policy import (
    ROUNDING,
    Agreement,
    ReplayOptions,
    ReplayReport,
    column,
    table,
)
from sgl_entropy.verify.trace import RequestTrace, TraceHeader


class StopReplay:
    """Any ``DraftStop`` over a trace.

    A record is shorter than the policy's chain where it was recorded with another stop, or where
    rows were pruned; ``beyond`` counts those cycles. The policy is then taken to draft what was
    drafted, so that it saves and loses nothing there.
    """

    def __init__(self, stop: DraftStop, header: TraceHeader) -> None:
        self.stop = stop
        self.header = header
        self.depths = [0] * header.draft_tokens
        self.beyond = self.cut = 0
        self.ledger = Ledger()
        self.unknown: str | None = None
        try:
            recorded = stop_of(header.draft_stop)
        except (ValueError, OSError) as error:
            recorded, self.unknown = None, str(error)
        self.agreement = Agreement(recorded is not None and recorded == stop)

    def add(self, request: RequestTrace) -> None:
        cycles, most = request.cycles, self.header.draft_tokens
        verified, emitted = (column(cycles, name) for name in ("verified", "emitted"))
        stopped = stop_depths(self.stop, request, most)
        found = stopped > 0
        # Without a record behind what was verified, a chain that goes on is known to do so alone.
        drafted = (
            verified if self.header.draft_stop is not None else torch.full_like(verified, most)
        )
        depth = torch.where(found, stopped, drafted)
        kept = torch.minimum(emitted, torch.where(found, stopped, verified) + 1)
        self.beyond += int((~found & (verified < most)).sum())
        self.cut += int((kept < emitted).sum())
        for at, count in enumerate(torch.bincount(depth, minlength=most + 1)[1:].tolist()):
            self.depths[at] += count
        self._check(request, stopped, verified)
        self.ledger.add(
            len(cycles),
            CycleCounts(int(drafted.sum()), int(verified.sum()), int(emitted.sum())),
            CycleCounts(
                int(depth.sum()), int(torch.minimum(verified, depth).sum()), int(kept.sum())
            ),
        )

    def report(self, costs: Costs | None) -> ReplayReport:
        figures = self.ledger.figures(costs)
        drafted = figures["drafted"]
        figures |= {
            "draft_steps_saved": round(1 - drafted["under"] / max(1, drafted["recorded"]), 4),
            "cycles_that_lose_tokens": self.cut,
            "beyond_the_record": self.beyond,
            "depths": [{"depth": at, "cycles": count} for at, count in enumerate(self.depths, 1)],
        }
        notes = ["draft steps saved are those of a batch of one"]
        if self.beyond and self.agreement.agrees is None:
            notes.append("the record ends before the policy would in some cycles: see beyond")
        if self.unknown:
            notes.append(f"the header's draft_stop is not understood: {self.unknown}")
        return ReplayReport(
            figures, self.agreement.agrees, self.agreement.disagreement, tuple(notes)
        )

    def _check(self, request: RequestTrace, stopped: Tensor, verified: Tensor) -> None:
        most = self.header.draft_tokens
        if self.agreement.agrees is None or self._same(stopped, verified).all():
            return
        # Values at a limit fall to either side of it once they are written with six decimals.
        either = [stop_depths(self.stop, request, most, by) for by in (-ROUNDING, ROUNDING)]
        same = torch.stack([self._same(found, verified) for found in (stopped, *either)]).any(0)
        for at in (~same).nonzero().flatten().tolist():
            want = int(stopped[at]) or most
            what = f"the policy drafts {want} tokens, the record has verified {int(verified[at])}"
            self.agreement.differs(request, at, what)

    def _same(self, stopped: Tensor, verified: Tensor) -> Tensor:
        want = torch.where(stopped > 0, stopped, self.header.draft_tokens)
        return verified <= want if self.header.pruned else verified == want


def stop_depths(stop: DraftStop, request: RequestTrace, most: int, rounding: float = 0.0) -> Tensor:
    """int64 [cycles]: the depth, from 1, of the token after which the chain ends; 0 where it does
    not end within the record. ``rounding`` makes the drafter look as much more unsure."""
    cycles = request.cycles
    entropy, prob = (table(cycles, name, most) for name in ("draft_entropy", "draft_prob"))
    entropy, prob = (entropy + rounding).clamp_min(0), (prob - rounding).clamp_min(0)
    verified = column(cycles, "verified")
    out = torch.zeros_like(verified)
    path = torch.ones(len(cycles))
    for depth in range(1, most + 1):
        path = path * prob[:, depth - 1]
        stops = stop.stops(DraftStep(depth, entropy[:, depth - 1].contiguous(), path))
        out[stops & (depth <= verified) & (out == 0)] = depth
    return out


def make_off(options: ReplayOptions, header: TraceHeader) -> StopReplay:
    options.done()
    return StopReplay(NoStop(), header)


def make_svip(options: ReplayOptions, header: TraceHeader) -> StopReplay:
    return StopReplay(_svip(options), header)


def make_calibrated(options: ReplayOptions, header: TraceHeader) -> StopReplay:
    return StopReplay(_calibrated(options), header)


def stop_of(held: Mapping[str, Any] | None) -> DraftStop:
    """The policy that a header's ``draft_stop`` names. Raises ValueError for one not known here."""
    if held is None:
        return NoStop()
    options = ReplayOptions(str(held["name"]), {k: v for k, v in held.items() if k != "name"})
    if options.name == "off":
        options.done()
        return NoStop()
    if options.name == "svip":
        return _svip(options)
    if options.name == "calibrated":
        return _calibrated(options)
    raise ValueError(f"no draft stop is called {options.name!r}")


def _svip(options: ReplayOptions) -> Svip:
    plain = Svip()
    stop = Svip(options.number("factor", plain.factor), options.number("limit", plain.limit))
    options.done()
    return stop


def _calibrated(options: ReplayOptions) -> CalibratedStop:
    """From ``table=FILE``, as ``sgl-entropy calibrate`` writes it or with the table alone, or from
    the numbers themselves as a header has them."""
    path = options.raw("table")
    if path is None:
        held = {key: options.raw(key) for key in ("edges", "acceptance")}
    else:
        held = _read(Path(str(path)))
    cost = options.raw("cost", held.get("cost"))
    options.done()
    if cost is None and held.get("edges") is not None:
        raise ValueError("calibrated: cost=TOKENS is missing: of a draft step, 0 to 1")
    try:
        return CalibratedStop(tuple(held["edges"]), tuple(held["acceptance"]), float(cost))
    except (TypeError, KeyError):
        raise ValueError(
            "calibrated: expected table=FILE, a JSON file with `edges` (rising entropies), "
            "`acceptance` (one more), and cost=TOKENS of a draft step"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"calibrated: {path}: not JSON: {error}") from None
    found = held.get("draft_stop", held) if isinstance(held, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"calibrated: {path}: expected an object")
    return found
