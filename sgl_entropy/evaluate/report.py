"""What ``sgl-entropy drafter eval`` reports: tau with an interval, by position, by uncertainty.

The counts come from the plain drafter (``offline``) or from a server's own counters
(``sgl_entropy/cli/drafter_eval_server.py``); both end here, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sgl_entropy.base.tables import text_table
from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.evaluate.tau import PromptCounts, pooled_interval
from sgl_entropy.evaluate.uncertainty import (
    EntropyPart,
    FirstDrafts,
    HeatMap,
    by_decile,
    heat_map,
)
from sgl_entropy.evaluate.walk import ChainFigures


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt's counts.

    Attributes:
        number: of the prompt, over all groups, from 0.
        drafts: the first of each cycle; empty where entropies are not known.
    """

    number: int
    group: str
    figures: ChainFigures
    drafts: FirstDrafts


@dataclass(frozen=True)
class Acceptance:
    """Of some prompts together.

    Attributes:
        acceptance_length: tau, pooled.
        interval: 95 %, over prompts.
        by_position: acceptance of each draft given that all before it were accepted.
    """

    acceptance_length: float
    interval: tuple[float, float]
    by_position: tuple[float, ...]
    cycles: int
    tokens: int
    prompts: int

    @classmethod
    def of(cls, judged: Sequence[JudgedPrompt]) -> Acceptance:
        """Raises ValueError where no cycle was counted."""
        pooled = judged[0].figures
        for one in judged[1:]:
            pooled = pooled + one.figures
        low, high = pooled_interval([_counts(one) for one in judged])
        return cls(
            round(pooled.tau, 4),
            (round(low, 4), round(high, 4)),
            tuple(round(share, 4) for share in pooled.acceptance),
            pooled.cycles,
            pooled.tokens,
            len(judged),
        )


@dataclass(frozen=True)
class AcceptanceReport:
    """Of all prompts and of each group; ``mean_of_groups``: of their taus."""

    pooled: Acceptance = field(metadata=FLAT)
    mean_of_groups: float
    groups: Mapping[str, Acceptance]
    per_prompt: tuple[PromptCounts, ...]
    by_target_entropy_decile: tuple[EntropyPart, ...] | None = None
    heat_map: HeatMap | None = None

    @classmethod
    def of(cls, judged: Sequence[JudgedPrompt], entropies: bool = True) -> AcceptanceReport:
        """In the order of the prompts' numbers.

        Args:
            entropies: whether the first drafts are known.

        Raises:
            ValueError: no cycle was counted.
        """
        judged = sorted(judged, key=lambda one: one.number)
        names = dict.fromkeys(one.group for one in judged)
        pooled = Acceptance.of(judged)
        groups = {n: Acceptance.of([one for one in judged if one.group == n]) for n in names}
        mean = sum(one.acceptance_length for one in groups.values()) / len(groups)
        drafts = FirstDrafts.joined([one.drafts for one in judged])
        return cls(
            pooled,
            round(mean, 4),
            groups,
            tuple(_counts(one) for one in judged),
            by_decile(drafts.target_entropy, drafts.accepted) if entropies else None,
            heat_map(drafts) if entropies else None,
        )


@dataclass(frozen=True)
class Unverified:
    """A server verified fewer tokens than its whole chains have, and what changes that."""

    verified: int
    of: int
    to_verify_all: str


@dataclass(frozen=True, kw_only=True)
class DrafterEvalSettings:
    """What the figures depend on besides models and texts.

    Attributes:
        depth: of the chains.
        dtype, device: of an offline measurement.
        server: of a server, what it says of itself.
    """

    depth: int
    dtype: str | None = None
    device: str | None = None
    max_new_tokens: int
    max_prompts: int
    max_prompt_tokens: int
    server: Mapping[str, Any] | None = None
    unverified: Unverified | None = None


@dataclass(frozen=True)
class TextFile:
    """A file of prompts."""

    file: str
    sha256: str


@dataclass(frozen=True)
class EvalSubject:
    """What is measured, with what and on what.

    Attributes:
        drafter, target: their folders.
        source: ``offline``, or the server's URL.
        texts: group -> its file.
        provenance: see ``base.provenance``.
    """

    drafter: str
    target: str
    source: str
    settings: DrafterEvalSettings = field(metadata=FLAT)
    texts: Mapping[str, TextFile]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class JudgedPart:
    """An interrupted measurement: so many of the prompts were judged."""

    judged: int
    of: int


@dataclass(frozen=True)
class TauRatio:
    """tau of one drafter over another's.

    Attributes:
        interval: 95 %, from a bootstrap of each group's prompts, the same for both.
        differs: the interval excludes 1.
    """

    ratio: float
    interval: tuple[float, float]
    differs: bool


@dataclass(frozen=True)
class AgainstEarlier:
    """The ratio to the drafter in that folder."""

    drafter: str
    paired: TauRatio = field(metadata=FLAT)


@dataclass(frozen=True)
class DrafterReport:
    """All that ``drafter eval --json`` writes."""

    subject: EvalSubject = field(metadata=FLAT)
    acceptance: AcceptanceReport = field(metadata=FLAT)
    partial: JudgedPart | None = None
    against: AgainstEarlier | None = None

    def table(self) -> str:
        """For people."""
        figures = self.acceptance
        header = ("group", "prompts", "tau", "95 % interval", "acceptance by position")
        rows = [
            (
                name,
                str(row.prompts),
                f"{row.acceptance_length:.3f}",
                "{:.3f} to {:.3f}".format(*row.interval),
                " ".join(f"{share:.2f}" for share in row.by_position),
            )
            for name, row in [*figures.groups.items(), ("all, pooled", figures.pooled)]
        ]
        lines = [text_table(header, rows)]
        if self.partial is not None:
            lines.append(f"partial: {self.partial.judged} of {self.partial.of} prompts")
        lines.append(f"mean of the groups: {figures.mean_of_groups:.3f}")
        if self.against is not None:
            paired = self.against.paired
            low, high = (100 * (one - 1) for one in paired.interval)
            lines.append(
                f"against {self.against.drafter}: {100 * (paired.ratio - 1):+.1f} % "
                f"({low:+.1f} to {high:+.1f}){'' if paired.differs else ', no difference'}"
            )
        if figures.by_target_entropy_decile:
            lines.append("first draft accepted, by target entropy (nats):")
        for part in figures.by_target_entropy_decile or ():
            low, high = part.entropy
            bar = "#" * round(40 * part.acceptance)
            lines.append(f"  {low:6.3f} to {high:6.3f}  {part.acceptance:.2f}  {bar}".rstrip())
        return "\n".join(lines)


def _counts(one: JudgedPrompt) -> PromptCounts:
    return PromptCounts(one.group, one.figures.tokens, one.figures.cycles)
