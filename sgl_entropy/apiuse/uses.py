"""What we use of a host package, one :class:`Use` each, and what no longer fits.

Ours, after the habit of good plugins for inference engines: a typed table of every host function
that they rely on, checked at load, so that a changed host is refused by name and not noticed by a
wrong answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgl_entropy.apiuse.sources import Definition, SourceTree

Kind = Literal["has", "calls", "replaces"]


@dataclass(frozen=True)
class Use:
    """One thing of the host that we rely on.

    Attributes:
        kind: ``has`` = it exists; ``calls`` = we call it as written (a class stands for its
            constructor); ``replaces`` = ours stands in its place (an override, a kernel's twin) or
            inside it (a patch's lines), so it must have these parameters.
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
    def order(self) -> tuple[str, str, str, tuple[str, ...]]:
        return self.module, self.name, self.kind, self.parameters


@dataclass(frozen=True)
class Mismatch:
    """A use that the host does not meet: what we expected, what it has."""

    use: Use
    expected: str
    actual: str

    def line(self) -> str:
        where = f"{self.use.module}.{self.use.name}"
        return f"{where} (used by {self.use.by}): expected {self.expected}, {self.actual}"


def use(kind: Kind, where: str, *parameters: str, by: str) -> Use:
    """A use of ``where``: ``module:name`` or ``module:Class.member``."""
    module, _, name = where.partition(":")
    return Use(kind, module, name, by, parameters)


def dump_uses(uses: Iterable[Use]) -> str:
    """JSON, one line a use: ``[kind, module:name, [parameters], by]``."""
    rows = (json.dumps([u.kind, f"{u.module}:{u.name}", [*u.parameters], u.by]) for u in uses)
    return "[\n" + ",\n".join(rows) + "\n]\n"


def load_uses(text: str) -> tuple[Use, ...]:
    """The inverse of ``dump_uses``."""
    rows = json.loads(text)
    return tuple(use(kind, where, *parameters, by=by) for kind, where, parameters, by in rows)


def check_uses(root: Path, package: str, uses: Iterable[Use]) -> list[Mismatch]:
    """The uses that the package in ``root`` does not meet, in the table's order.

    Raises:
        OSError: a source file is there and cannot be read.
    """
    tree = SourceTree(root, package)
    checked = (_check(tree, use) for use in uses)
    return [mismatch for mismatch in checked if mismatch is not None]


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
        return Mismatch(use, expected, f"found that {owner or use.module} has no {member}")
    if use.kind == "has" or definition.kind == "foreign":
        return None
    if definition.signature is None:
        return Mismatch(use, expected, f"found a {definition.kind}, not a function")
    wrong = _call(definition, use) if use.kind == "calls" else _replacement(definition, use)
    return Mismatch(use, expected, f"found {definition.describe()}: {wrong}") if wrong else None


def _call(definition: Definition, use: Use) -> str:
    """Why our call does not fit; "" where it does."""
    assert definition.signature is not None
    by_position = [name for name in use.parameters if name[-1] not in "=*"]
    by_keyword = {name[:-1]: None for name in use.parameters if name.endswith("=")}
    for number, (name, theirs) in enumerate(zip(by_position, definition.positional, strict=False)):
        if name != theirs:
            return f"parameter {number + 1} is {theirs}, not {name}"
    written_out = not {"*", "**"} & {*use.parameters}
    bind = definition.signature.bind if written_out else definition.signature.bind_partial
    try:
        bind(*by_position, **by_keyword)
    except TypeError as error:
        return str(error)
    return ""


def _replacement(definition: Definition, use: Use) -> str:
    """Why callers of the host's function cannot call ours instead; "" where they can."""
    theirs, ours = definition.parameters, use.parameters
    if theirs == ours:
        return ""
    added = [name for name in theirs if name not in ours]
    lost = [name for name in ours if name not in theirs]
    changes = [f"new {', '.join(added)}"] if added else []
    changes += [f"without {', '.join(lost)}"] if lost else []
    return "; ".join(changes) or "another order"
