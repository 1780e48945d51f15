"""What a Python package defines, read from its sources: nothing of it is imported.

Follows re-exports (``from .x import *``, ``__init__`` files), base classes inside the package
and dataclass fields, so that a name can be asked for where its users import it from. What comes
from outside the package, or is made at run time, is taken as it is: present, signature unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# ``if``, ``try`` and ``with`` open no scope of their own.
_OPEN = (ast.If, ast.Try, ast.With)


@dataclass(frozen=True)
class Parameter:
    """One parameter; ``keyword_only`` ones stand behind a ``*``."""

    name: str
    required: bool
    keyword_only: bool = False


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        kind: ``function``, ``class``, ``value`` or ``foreign`` (from outside the package).
        parameters: of a function, or of a class's constructor, without self; None = unknown.
        more_positional, more_keywords: whether it takes ``*args``, ``**kwargs``.
    """

    kind: str
    parameters: tuple[Parameter, ...] | None = None
    more_positional: bool = False
    more_keywords: bool = False

    def describe(self) -> str:
        """``(a, b=, *, c)``: ``=`` marks a parameter that may be left out."""
        if self.parameters is None:
            return self.kind
        words, starred = [], False
        for parameter in self.parameters:
            if parameter.keyword_only and not starred:
                words.append("*args" if self.more_positional else "*")
                starred = True
            words.append(parameter.name + ("" if parameter.required else "="))
        if self.more_positional and not starred:
            words.append("*args")
        if self.more_keywords:
            words.append("**kwargs")
        return f"({', '.join(words)})"


@dataclass
class Module:
    """One parsed module.

    Attributes:
        body: its tree.
        names: what it binds at its top, name -> statements, in their order.
        stars: modules of which it imports everything.
    """

    name: str
    is_package: bool
    body: ast.Module
    names: dict[str, list[ast.AST]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


class SourceTree:
    """The sources of one package folder, parsed as they are asked for.

    Args:
        root: the package's own folder.
        package: the name that it is imported by.
        texts: module -> source that stands in place of its file.
    """

    def __init__(self, root: Path, package: str, texts: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.package = package
        self._modules: dict[str, Module | None] = {
            name: parse_module(name, text, self._path(name) or root)
            for name, text in (texts or {}).items()
        }
        self._members: dict[ast.ClassDef, dict[str, Definition]] = {}

    def has_module(self, module: str) -> bool:
        """Whether ``module`` (dotted) is a file or a package folder here."""
        return self._path(module) is not None

    def find(self, module: str, dotted: str) -> Definition | None:
        """``dotted`` (``name``, or ``Class.member``) as seen from ``module``; None: not there.

        Raises:
            SyntaxError, OSError: a file on the way cannot be parsed or read.
        """
        name, _, member = dotted.partition(".")
        found = self._resolve(module, name, frozenset())
        if found is None:
            return None
        where, node = found
        if member:
            if not isinstance(node, ast.ClassDef):
                return Definition("foreign") if node is None else None
            return self._member(where, node, member)
        if isinstance(node, ast.ClassDef):
            return self._constructor(where, node)
        return _describe(node, method=False)

    def _path(self, module: str) -> Path | None:
        words = module.split(".")
        if words[0] != self.package:
            return None
        base = self.root.joinpath(*words[1:])
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.is_file() and (path.name != "__init__.py" or path.parent == base):
                return path
        return None

    def module(self, name: str) -> Module | None:
        """The parsed module; None: not there.

        Raises:
            SyntaxError, OSError: its file cannot be parsed or read.
        """
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = (
                None if path is None else parse_module(name, path.read_bytes(), path)
            )
        return self._modules[name]

    def _resolve(
        self, module: str, name: str, seen: frozenset[tuple[str, str]]
    ) -> tuple[str, ast.AST | None] | None:
        """(module that defines it, its node); node None = it comes from outside the package."""
        if (module, name) in seen:
            return None
        seen |= {(module, name)}
        parsed = self.module(module)
        if parsed is None:
            return None
        foreign = False
        for node in parsed.names.get(name, []):
            if not isinstance(node, (ast.ImportFrom, ast.Import)):
                return module, node
            for source, original in imported(parsed, node, name):
                if source.split(".", 1)[0] != self.package:
                    foreign = True
                    continue
                found = self._resolve(source, original, seen) if original else None
                if found is not None:
                    return found
                if self.has_module(f"{source}.{original}" if original else source):
                    return source, None
        for source in parsed.stars:
            found = self._resolve(source, name, seen)
            if found is not None:
                return found
        return (module, None) if foreign else None

    def _bases(self, where: str, node: ast.ClassDef) -> Iterator[tuple[str, ast.AST | None]]:
        for base in node.bases:
            if isinstance(base, ast.Subscript):
                base = base.value
            name = base.id if isinstance(base, ast.Name) else None
            found = self._resolve(where, name, frozenset()) if name else None
            yield found or (where, None)

    def _member(self, where: str, node: ast.ClassDef, name: str) -> Definition | None:
        if node not in self._members:
            self._members[node] = _own_members(node)
        if name in self._members[node]:
            return self._members[node][name]
        for base_module, base in self._bases(where, node):
            if isinstance(base, ast.ClassDef):
                found = self._member(base_module, base, name)
                if found is not None:
                    return found
        return None

    def _constructor(self, where: str, node: ast.ClassDef) -> Definition:
        if _is_dataclass(node):
            return Definition("class", tuple(self._fields(where, node).values()))
        for item in statements(node.body):
            if isinstance(item, _FUNCTIONS) and item.name == "__init__":
                found = _describe(item, method=True)
                return Definition(
                    "class", found.parameters, found.more_positional, found.more_keywords
                )
        for base_module, base in self._bases(where, node):
            if isinstance(base, ast.ClassDef):
                return self._constructor(base_module, base)
        return Definition("class")

    def _fields(self, where: str, node: ast.ClassDef) -> dict[str, Parameter]:
        fields: dict[str, Parameter] = {}
        for base_module, base in self._bases(where, node):
            if isinstance(base, ast.ClassDef) and _is_dataclass(base):
                fields |= self._fields(base_module, base)
        for item in statements(node.body):
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            if "ClassVar" not in ast.unparse(item.annotation):
                fields[item.target.id] = Parameter(item.target.id, item.value is None)
        return fields


def parse_module(name: str, source: str | bytes, path: Path) -> Module:
    """Parse one module, of the file ``path``.

    Raises:
        SyntaxError: it is no valid Python.
    """
    module = Module(name, path.name == "__init__.py", ast.parse(source, str(path)))
    for node in statements(module.body.body):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            module.names.setdefault(node.name, []).append(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if alias.name == "*" and isinstance(node, ast.ImportFrom):
                    module.stars.append(absolute(module, node))
                else:
                    bound = alias.asname or alias.name.split(".", 1)[0]
                    module.names.setdefault(bound, []).append(node)
        else:
            for bound in assigned(node):
                module.names.setdefault(bound, []).append(node)
    return module


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of one scope, those inside ``if``, ``try`` and ``with`` too."""
    for node in body:
        yield node
        if isinstance(node, _OPEN):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def _own_members(node: ast.ClassDef) -> dict[str, Definition]:
    """Methods, class attributes and what methods assign to ``self``; bases left out."""
    members: dict[str, Definition] = {}
    for item in statements(node.body):
        if isinstance(item, _FUNCTIONS):
            members.setdefault(item.name, _describe(item, method=True))
        for name in assigned(item):
            members.setdefault(name, Definition("value"))
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Attribute) or not isinstance(inner.ctx, ast.Store):
            continue
        if isinstance(inner.value, ast.Name) and inner.value.id == "self":
            members.setdefault(inner.attr, Definition("value"))
    return members


def assigned(node: ast.AST) -> set[str]:
    """Plain names that an assignment binds."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        targets = [node.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def imported(
    module: Module, node: ast.Import | ast.ImportFrom, name: str
) -> Iterator[tuple[str, str]]:
    """(source module, name in it) that ``node`` binds to ``name``; "" = the module itself."""
    for alias in node.names:
        if (alias.asname or alias.name.split(".", 1)[0]) == name:
            if isinstance(node, ast.ImportFrom):
                yield absolute(module, node), alias.name
            else:
                yield alias.name, ""


def absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    words = module.name.split(".")
    words = words[: len(words) - node.level + (1 if module.is_package else 0)]
    return ".".join([*words, node.module] if node.module else words)


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(d).endswith("dataclass") for d in decorators)


def _describe(node: ast.AST | None, *, method: bool) -> Definition:
    if node is None:
        return Definition("foreign")
    if not isinstance(node, _FUNCTIONS):
        return Definition("value")
    decorators = {ast.unparse(d) for d in node.decorator_list}
    if method and decorators & {"property", "cached_property", "functools.cached_property"}:
        return Definition("value")
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    first_default = len(positional) - len(args.defaults)
    found = [Parameter(a.arg, i < first_default) for i, a in enumerate(positional)]
    if method and "staticmethod" not in decorators:
        found = found[1:]
    found += [
        Parameter(a.arg, default is None, keyword_only=True)
        for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return Definition("function", tuple(found), args.vararg is not None, args.kwarg is not None)
