"""Findings of a check: one line each, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sgl_entropy.checkpoint.errors import DrafterError

Level = Literal["ok", "warn", "error"]


@dataclass(frozen=True)
class Finding:
    """One checked thing.

    Attributes:
        level: ``ok``, ``warn`` (it runs, but read this) or ``error`` (it must not be served).
        name: what was checked, a few words.
        detail: what was expected and what was found.
        fix: what to do; empty for ``ok``.
    """

    level: Level
    name: str
    detail: str
    fix: str = ""

    def line(self) -> str:
        """``detail``, then the fix."""
        return f"{self.detail}: {self.fix}" if self.fix else self.detail

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]


def raise_errors(source: object, findings: Sequence[Finding]) -> None:
    """Raise one ``DrafterError`` that lists every error finding; do nothing without any."""
    errors = errors_of(findings)
    if not errors:
        return
    if len(errors) == 1:
        raise DrafterError(f"{source}: {errors[0].line()}")
    lines = "\n".join(f"  - {finding.line()}" for finding in errors)
    raise DrafterError(f"{source}: {len(errors)} problems\n{lines}")
