"""Replays policies over a trace file: what each would have saved or changed, and whether the
engine's own counts agree with the policy that it followed.

The file is read once, a request at a time; a replay keeps sums and a few numbers a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.typed_json import as_json
from sgl_entropy.verify.policies import DrafterSwitch
from sgl_entropy.verify.replay.easd import EasdReplay, make_easd
from sgl_entropy.verify.replay.ledger import ReplayCosts
from sgl_entropy.verify.replay.policy import Replay, ReplayOptions, ReplayReport
from sgl_entropy.verify.replay.stop import StopReplay, make_stop, stop_of
from sgl_entropy.verify.replay.strictness import make_strictness
from sgl_entropy.verify.replay.switch import make_switch
from sgl_entropy.verify.trace import TraceHeader
from sgl_entropy.verify.trace_file import TraceReader


@dataclass(frozen=True)
class Policy:
    """How a policy is made from its ``key=value`` settings, and what they are."""

    make: Callable[[ReplayOptions, TraceHeader], Replay]
    help: str


POLICIES = {
    "off": Policy(make_stop, "chains of full length: what was recorded"),
    "svip": Policy(make_stop, "draft stop: sqrt(factor * H_draft) > limit; factor=0.15, limit=0.3"),
    "calibrated": Policy(
        make_stop,
        "draft stop: the next token does not pay; table=FILE, cost=TOKENS of a draft step",
    ),
    "easd": Policy(
        make_easd,
        "EASD; target_entropy, draft_entropy, overlap, accepted_only=true|false (default: the "
        "recorded rule's)",
    ),
    "strictness": Policy(
        make_strictness,
        "typical acceptance below=0.5 nats, eps=0.09, delta=0.3; easd=true|false and its keys",
    ),
    "switch": Policy(
        make_switch,
        f"two drafters by mean target entropy: down={DrafterSwitch.down:g}, "
        f"up={DrafterSwitch.up:g}, start=small|large",
    ),
}


@dataclass(frozen=True)
class ReplayedTrace:
    """Policies replayed over one trace; ``policies``: as each was asked for -> its report."""

    trace: str
    header: TraceHeader
    policies: Mapping[str, ReplayReport]
    costs: ReplayCosts | None

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` writes it."""
        out = {"trace": self.trace, "header": self.header.to_dict()}
        out["policies"] = as_json(self.policies)
        return out if self.costs is None else {**out, "costs": as_json(self.costs)}


def make(word: str, header: TraceHeader) -> Replay:
    """The policy that ``NAME:KEY=VALUE,...`` says. Raises ValueError for what it cannot say."""
    options = ReplayOptions.parse(word)
    if options.name not in POLICIES:
        raise ValueError(
            f"--policy {word}: no policy is called {options.name!r}; there are "
            f"{', '.join(POLICIES)}"
        )
    return POLICIES[options.name].make(options, header)


def recorded(header: TraceHeader) -> dict[str, Replay]:
    """The policies that a trace was recorded under, by name.

    Raises ValueError for a draft stop that is not known here, or a rule that cannot be replayed.
    """
    stop = "off" if header.draft_stop is None else str(header.draft_stop["name"])
    out: dict[str, Replay] = {
        f"{stop} (as recorded)": StopReplay(stop_of(header.draft_stop), header)
    }
    if header.rule is not None:
        out["easd (as recorded)"] = EasdReplay(header.rule, header)
    return out


def replay(
    path: Path, words: Sequence[str] = (), costs: ReplayCosts | None = None
) -> ReplayedTrace:
    """Replay policies over one trace.

    Args:
        words: ``NAME:KEY=VALUE,...``; none = the policies that the trace was recorded under.
        costs: for ratios of speeds.

    Raises:
        ValueError: a policy that is not one or does not fit the trace, or a broken trace.
        OSError: no such file.
    """
    reader = TraceReader(path)
    policies = {word: make(word, reader.header) for word in words} or recorded(reader.header)
    for request in reader:
        for policy in policies.values():
            policy.add(request)
    try:
        reports = {word: policy.report(costs) for word, policy in policies.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return ReplayedTrace(str(path), reader.header, reports, costs)
