"""Dynamic draft length, replayed: where each chain would have ended, and what that saves and loses.

Exact for each recorded cycle by itself: the depth at which the request would have stopped (the
token that stops is kept), the draft steps saved, and the tokens lost, which are those accepted
after that depth: verification is exact, and the target's own token after the stop is the first of
them. What losing them costs later is ``ledger``'s estimate. Under EASD a lost token would have
been checked at another position, so there the loss is an estimate as well.

Draft steps are counted as a batch of one takes them. In a larger batch the chain goes on until
every request in it has stopped; a trace does not say which requests were together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.verify.policies import CalibratedStop, DraftStep, DraftStop, NoStop, Svip
from sgl_entropy.verify.positions import column, table
from sgl_entropy.verify.replay.ledger import CycleCounts, Ledger, LedgerFigures, ReplayCosts
from sgl_entropy.verify.replay.policy import Agreement, ReplayOptions, ReplayReport
from sgl_entropy.verify.trace import RequestTrace, TraceHeader


@dataclass(frozen=True)
class DepthCount:
    """Cycles whose chain would have had this depth."""

    depth: int
    cycles: int


@dataclass(frozen=True)
class StopFigures:
    """What the stop would have done.

    Attributes:
        draft_steps_saved: share of the recorded ones.
        cycles_that_lose_tokens: cycles that would have emitted fewer.
        beyond_the_record: cycles whose chain was recorded shorter than the stop's.
    """

    ledger: LedgerFigures = field(metadata=FLAT)
    draft_steps_saved: float
    cycles_that_lose_tokens: int
    beyond_the_record: int
    depths: tuple[DepthCount, ...]


class StopReplay:
    """Any ``DraftStop`` over a trace.

    A record is shorter than the policy's chain where it was recorded with another stop, or where
    rows were pruned; ``beyond_the_record`` counts those cycles. The policy is then taken to draft
    what was drafted, so that it saves and loses nothing there.
    """

    def __init__(self, stop: DraftStop, header: TraceHeader) -> None:
        self.stop = stop
        self.header = header
        self.depths = torch.zeros(header.draft_tokens + 1, dtype=torch.long)
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
        stops = stopped > 0
        # Without a draft stop in force every chain was drafted whole, whatever was verified of it.
        whole = self.header.draft_stop is None
        depth = torch.where(stops, stopped, most if whole else verified)
        kept = torch.minimum(emitted, torch.where(stops, stopped, verified) + 1)
        self.beyond += int((~stops & (verified < most)).sum())
        self.cut += int((kept < emitted).sum())
        self.depths += torch.bincount(depth, minlength=most + 1)
        under = (depth, torch.minimum(verified, depth), kept)
        self.ledger.add(
            len(cycles),
            CycleCounts.recorded(cycles, self.header),
            CycleCounts(*(int(counts.sum()) for counts in under)),
        )

        def same(more: float) -> Tensor:
            depths = stop_depths(self.stop, request, most, more)
            want = torch.where(depths > 0, depths, most)
            return verified <= want if self.header.pruned else verified == want

        def differs(cycle: int) -> str:
            return (
                f"the policy drafts {int(stopped[cycle]) or most} tokens, the record has verified "
                f"{int(verified[cycle])}"
            )

        self.agreement.check(request, same, differs)

    def report(self, costs: ReplayCosts | None) -> ReplayReport:
        ledger = self.ledger.figures(costs)
        drafted = ledger.drafted
        notes = ["draft steps saved are those of a batch of one"]
        if self.beyond and self.agreement.agrees is None:
            notes.append(
                "in some cycles the record ends before the policy would: beyond_the_record"
            )
        if self.unknown:
            notes.append(f"the header's draft_stop is not understood: {self.unknown}")
        figures = StopFigures(
            ledger,
            round(1 - drafted.under / max(1, drafted.recorded), 4),
            self.cut,
            self.beyond,
            tuple(DepthCount(at, n) for at, n in enumerate(self.depths.tolist()) if at),
        )
        return self.agreement.report(figures, notes)


def stop_depths(stop: DraftStop, request: RequestTrace, most: int, rounding: float = 0.0) -> Tensor:
    """int64 [cycles]: the depth, from 1, of the token after which the chain ends; 0 where it does
    not end within the record. ``rounding``: nats by which the drafter looks more unsure."""
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


def make_stop(options: ReplayOptions, header: TraceHeader) -> StopReplay:
    """The replay of a stop that ``options`` name."""
    return StopReplay(_stop_named(options), header)


def stop_of(setting: Mapping[str, Any] | None) -> DraftStop:
    """The policy that a header's ``draft_stop`` names. Raises ValueError for one not known here."""
    if setting is None:
        return NoStop()
    given = {key: value for key, value in setting.items() if key != "name"}
    return _stop_named(ReplayOptions(str(setting["name"]), given))


def _stop_named(options: ReplayOptions) -> DraftStop:
    stop: DraftStop
    if options.name == "off":
        stop = NoStop()
    elif options.name == "svip":
        plain = Svip()
        stop = Svip(options.number("factor", plain.factor), options.number("limit", plain.limit))
    elif options.name == "calibrated":
        stop = _calibrated(options)
    else:
        raise ValueError(f"no draft stop is called {options.name!r}")
    options.done()
    return stop


def _calibrated(options: ReplayOptions) -> CalibratedStop:
    """From ``table=FILE``, as ``sgl-entropy calibrate`` writes it or with the table alone, or from
    the numbers themselves as a header has them."""
    path = options.raw("table")
    if path is None:
        numbers = {key: options.raw(key) for key in ("edges", "acceptance")}
    else:
        numbers = _read(Path(str(path)))
    cost = options.raw("cost", numbers.get("cost"))
    options.done()
    if cost is None and numbers.get("edges") is not None:
        raise ValueError("calibrated: cost=TOKENS is missing: what a draft step costs, 0 to 1")
    try:
        return CalibratedStop(tuple(numbers["edges"]), tuple(numbers["acceptance"]), float(cost))
    except (TypeError, KeyError):
        raise ValueError(
            "calibrated: expected table=FILE, a JSON file with `edges` (rising entropies), "
            "`acceptance` (one more), and cost=TOKENS of a draft step"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"calibrated: {path}: not JSON: {error}") from None
    stop = raw.get("draft_stop", raw) if isinstance(raw, dict) else None
    if not isinstance(stop, dict):
        raise ValueError(f"calibrated: {path}: expected an object")
    return stop
