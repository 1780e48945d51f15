"""Traces for the tests: written by hand, and drawn from a model of a drafter and a target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.verify.policies import DraftStep, DraftStop, NoStop
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord, RequestTrace, TraceHeader
from sgl_entropy.verify.trace_file import TraceWriter

HEADER = TraceHeader("target", "drafter", 4, 10, temperature=0.0)


def cycle(
    accepted: int,
    draft_entropy: Sequence[float] = (0.1, 0.1, 0.1, 0.1),
    **given: Any,
) -> CycleRecord:
    """A cycle of as many verified tokens as ``draft_entropy`` has; all else has a default."""
    n = len(draft_entropy)
    plain: dict[str, Any] = {
        "draft_prob": (0.9,) * n,
        "overlap": (0.5,) * n,
        "target_prob": (0.9,) * accepted + (0.05,) * (n - accepted),
        "target_entropy": (0.2,) * (n + 1),
        "accepted": accepted,
        "emitted": accepted + 1,
    }
    return CycleRecord(draft_entropy=tuple(draft_entropy), **(plain | given))


def requests(*cycles: Sequence[CycleRecord]) -> list[RequestTrace]:
    return [RequestTrace(f"r{i}", None, tuple(held)) for i, held in enumerate(cycles)]


def write(path: Path, header: TraceHeader, held: Sequence[RequestTrace]) -> Path:
    with TraceWriter(path, header) as trace:
        for request in held:
            trace.add(request)
    return path


def simulated(
    header: TraceHeader,
    stop: DraftStop | None = None,
    rule: EasdRule | None = None,
    pruned: bool = False,
    count: int = 12,
    seed: int = 0,
) -> Iterator[RequestTrace]:
    """What an engine would record under a stop and a rule, as it decides token by token."""
    chance = torch.Generator().manual_seed(seed)
    k = header.draft_tokens

    def draw(n: int) -> torch.Tensor:
        return torch.rand(n, generator=chance)

    for number in range(count):
        cycles = []
        for _ in range(int(draw(1) * 20) + 1):
            entropy, prob, share = 3 * draw(k), draw(k).sqrt(), (10 * draw(k)).round() / 10
            depth, path = 0, torch.ones(1)
            while depth < k:
                path = path * prob[depth]
                depth += 1
                step = DraftStep(depth, entropy[depth - 1 : depth], path)
                if bool((stop or NoStop()).stops(step)):
                    break
            verified = int(draw(1) * (depth + 1)) if pruned else depth
            accepted = 0
            while accepted < verified and bool(draw(1) < 0.7):
                accepted += 1
            lists = ("draft_entropy", "draft_prob", "overlap", "target_prob")
            values = (tuple(t[:verified].tolist()) for t in (entropy, prob, share, draw(k)))
            known: dict[str, Any] = dict(zip(lists, values, strict=True))
            one = CycleRecord(
                **known,
                target_entropy=tuple((3 * draw(k + 1))[: verified + 1].tolist()),
                accepted=accepted,
                emitted=accepted + 1,
            )
            cycles.append(_with_rule(one, header, rule) if rule else one)
        last = cycles[-1]
        if last.accepted and last.fired is None and number % 2:
            # The request ends with its last accepted token.
            checked = min(last.checked, last.accepted)
            cycles[-1] = dataclasses.replace(last, emitted=last.accepted, checked=checked)
        yield RequestTrace(f"sim-{number}", "simulated", tuple(cycles))


def _with_rule(one: CycleRecord, header: TraceHeader, rule: EasdRule) -> CycleRecord:
    """Position by position, as ``verify_chain`` walks."""
    checked = 0
    for at in range(one.judged):
        if rule.accepted_only and at == one.accepted:
            continue
        checked += 1
        if (
            one.target_entropy[at] > rule.target_entropy
            and one.draft_entropy[at] > rule.draft_entropy
            and one.overlap[at] >= rule.overlap - 1e-6
        ):
            return dataclasses.replace(one, accepted=at, emitted=at + 1, checked=checked, fired=at)
    return dataclasses.replace(one, checked=checked)
