"""What we use of a host package, one :class:`Use` each, and what no longer fits.

Ours, after the habit of good plugins for inference engines: a typed table of every host function
that they rely on, checked at load, so that a changed host is refused by name and not found out
by a wrong answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgl_entropy.hostapi.sources import Definition, SourceTree

Kind = Literal["has", "calls", "replaces"]


@dataclass(frozen=True)
class Use:
    """One thing of the host that we rely on.

    Attributes:
        kind: ``has`` = it exists; ``calls`` = we call it as written; ``replaces`` = ours stands
            in its place (an override, a kernel's twin) or inside it (a patch's lines), so it must
            have these parameters.
        module: where we import it from, dotted.
        name: ``name`` or ``Class.member``.
        by: which module of ours, or which patch, relies on it.
        parameters: ``calls``: what we pass, ``a`` by position, ``a=`` by keyword, ``*`` and ``**``
            for what is not written out; ``replaces``: every parameter in order.
    """

    kind: Kind
    module: str
    name: str
    by: str
    parameters: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def order(self) -> tuple[str, str, str, tuple[str, ...]]:
        return self.module, self.name, self.kind, self.parameters


@dataclass(frozen=True)
class Mismatch:
    """A use that the host does not meet: what we expected, what it has."""

    use: Use
    expected: str
    found: str

    def line(self) -> str:
        return f"{self.use.where} (used by {self.use.by}): expected {self.expected}, {self.found}"


def has(where: str, *members: str, by: str) -> tuple[Use, ...]:
    """``module:name`` exists, or its ``members`` do (fields, attributes, methods)."""
    module, name = where.split(":")
    names = [f"{name}.{member}" for member in members] or [name]
    return tuple(Use("has", module, each, by) for each in names)


def calls(where: str, *parameters: str, by: str) -> tuple[Use, ...]:
    """We call ``module:name`` with these ``parameters``; a class stands for its constructor."""
    module, name = where.split(":")
    return (Use("calls", module, name, by, parameters),)


def replaces(where: str, *parameters: str, by: str) -> tuple[Use, ...]:
    """Ours is called in place of ``module:name``, with that one's arguments."""
    module, name = where.split(":")
    return (Use("replaces", module, name, by, parameters),)


def dump_uses(uses: Iterable[Use]) -> str:
    """JSON, one line a use: ``[kind, module:name, [parameters], by]``."""
    rows = (
        json.dumps([use.kind, f"{use.module}:{use.name}", [*use.parameters], use.by])
        for use in uses
    )
    return "[\n" + ",\n".join(rows) + "\n]\n"


def load_uses(text: str) -> tuple[Use, ...]:
    """The inverse of ``dump_uses``."""
    uses = []
    for kind, where, parameters, by in json.loads(text):
        module, _, name = where.partition(":")
        uses.append(Use(kind, module, name, by, tuple(parameters)))
    return tuple(uses)


def check_uses(root: Path, package: str, uses: Iterable[Use]) -> list[Mismatch]:
    """The uses that the package in ``root`` does not meet, in the table's order.

    Raises:
        OSError: a source file is there and cannot be read.
    """
    tree = SourceTree(root, package)
    found = (_check(tree, use) for use in uses)
    return [mismatch for mismatch in found if mismatch is not None]


def _check(tree: SourceTree, use: Use) -> Mismatch | None:
    expected = "it to exist" if use.kind == "has" else f"({', '.join(use.parameters)})"
    if not tree.has_module(use.module):
        return Mismatch(use, expected, f"found no module {use.module}")
    try:
        definition = tree.find(use.module, use.name)
    except SyntaxError as error:
        return Mismatch(use, expected, f"found no valid Python in {error.filename}: {error.msg}")
    if definition is None:
        owner, _, member = use.name.rpartition(".")
        gone = f"{owner} has no {member}" if owner else f"{use.module} has no {use.name}"
        return Mismatch(use, expected, f"found that {gone}")
    if use.kind == "has" or definition.kind == "foreign":
        return None
    if definition.parameters is None:
        return Mismatch(use, expected, f"found a {definition.kind}, not a function")
    wrong = _call(definition, use) if use.kind == "calls" else _replacement(definition, use)
    if not wrong:
        return None
    return Mismatch(use, expected, f"found {definition.describe()}: {wrong}")


def _call(definition: Definition, use: Use) -> str:
    """Why our call does not fit; "" where it does."""
    assert definition.parameters is not None
    positional = [p.name for p in definition.parameters if not p.keyword_only]
    known = {p.name for p in definition.parameters}
    passed = set()
    for index, parameter in enumerate(use.parameters):
        name = parameter.removesuffix("=")
        passed.add(name)
        if name in ("*", "**"):
            continue
        if parameter.endswith("="):
            if name not in known and not definition.more_keywords:
                return f"no parameter {name}"
        elif index >= len(positional):
            if not definition.more_positional:
                return f"no positional parameter {name}"
        elif positional[index] != name:
            return f"parameter {index + 1} is {positional[index]}, not {name}"
    if {"*", "**"} & passed:
        return ""
    needed = [p.name for p in definition.parameters if p.required and p.name not in passed]
    return f"{', '.join(needed)} must be given as well" if needed else ""


def _replacement(definition: Definition, use: Use) -> str:
    """Why callers of the host's function cannot call ours instead; "" where they can."""
    assert definition.parameters is not None
    found = [p.name for p in definition.parameters]
    ours = list(use.parameters)
    if found == ours:
        return ""
    added = [name for name in found if name not in ours]
    lost = [name for name in ours if name not in found]
    changes = [f"new {', '.join(added)}"] if added else []
    changes += [f"without {', '.join(lost)}"] if lost else []
    return "; ".join(changes) or "another order"
