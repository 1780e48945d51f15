"""The result of an examination: one line a check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One checked thing.

    Attributes:
        level: ``ok``; ``warn`` = it runs, but read this; ``FAIL`` = fix this first.
        name: what was checked, a few words.
        found: what is there, and what was expected where that differs.
        fix: what to do; empty for ``ok``.
    """

    level: Level
    name: str
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Check:
    return Check("ok", name, found)


def warn(name: str, found: str, fix: str) -> Check:
    return Check("warn", name, found, fix)


def fail(name: str, found: str, fix: str) -> Check:
    return Check("FAIL", name, found, fix)


@dataclass(frozen=True)
class Diagnosis:
    """All checks, in the order in which a person should read them."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check failed; there may be warnings."""
        return not self.count("FAIL")

    def count(self, level: Level) -> int:
        return sum(check.level == level for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "ok": self.ok,
            "failures": self.count("FAIL"),
            "warnings": self.count("warn"),
            "checks": [asdict(check) for check in self.checks],
        }

    def lines(self) -> list[str]:
        """One line a check, and a last one with the numbers of failures and warnings."""
        width = max((len(check.name) for check in self.checks), default=0)
        out = [_line(check, width) for check in self.checks]
        failures, warnings = self.count("FAIL"), self.count("warn")
        return [*out, f"{_number(failures, 'failure')}, {_number(warnings, 'warning')}"]


def _line(check: Check, width: int) -> str:
    text = " -> ".join(_one_line(part) for part in (check.found, check.fix) if part)
    return f"{check.level:<4}  {check.name:<{width}}  {text}"


def _one_line(text: str) -> str:
    """A message of several lines (a list of files, of tensors) as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ")


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
