"""What a Python package defines, read from its sources: nothing of it is imported.

Follows re-exports (``from .x import *``, ``__init__`` files), base classes inside the package
and dataclass fields, so that a name can be asked for where its users import it from. What comes
from outside the package, or is made at run time, is taken as it is: present, signature unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import resolve_name
from inspect import Parameter, Signature
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# ``if``, ``try`` and ``with`` open no scope of their own.
_OPEN = (ast.If, ast.Try, ast.With)


class _Text(str):
    """A default as it is written: a signature shows it so."""

    __slots__ = ()
    __repr__ = str.__str__


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        kind: ``function``, ``class``, ``value`` or ``foreign`` (from outside the package).
        signature: of a function, or of a class's constructor, without self; None = unknown.
    """

    kind: str
    signature: Signature | None = None

    @property
    def positional(self) -> tuple[str, ...]:
        """Parameters that a call may give by position."""
        return self._names(Parameter.POSITIONAL_OR_KEYWORD)

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters, without ``*args`` and ``**kwargs``."""
        return self.positional + self._names(Parameter.KEYWORD_ONLY)

    def _names(self, kind: object) -> tuple[str, ...]:
        parameters = self.signature.parameters.values() if self.signature else ()
        return tuple(each.name for each in parameters if each.kind == kind)

    def describe(self) -> str:
        """The signature as ``def`` has it, without annotations; else the kind."""
        return self.kind if self.signature is None else str(self.signature)


class Module:
    """One parsed module, of the file ``path``.

    Attributes:
        definitions: what its top defines or assigns, name -> the first statement.
        imports: what its top imports.

    Raises:
        SyntaxError: it is no valid Python.
    """

    def __init__(self, name: str, source: str | bytes, path: Path) -> None:
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.body = ast.parse(source, str(path))
        self.definitions: dict[str, ast.AST] = {}
        for node in statements(self.body.body):
            for bound in _bound(node):
                self.definitions.setdefault(bound, node)
        self.imports = self.imported(statements(self.body.body))

    def imported(self, nodes: Iterable[ast.AST]) -> dict[str, list[tuple[str, str]]]:
        """Name -> (module, name there) for every ``from ... import`` among ``nodes``."""
        sources: dict[str, list[tuple[str, str]]] = {}
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                module = resolve_name("." * node.level + (node.module or ""), self.package)
                for alias in node.names:
                    bound = alias.asname or alias.name
                    sources.setdefault(bound, []).append((module, alias.name))
        return sources


class SourceTree:
    """The sources of one package folder, parsed as they are asked for.

    Args:
        root: the package's own folder.
        package: the name that it is imported by.
        texts: module -> source that stands in place of its file.
    """

    def __init__(self, root: Path, package: str, texts: Mapping[str, bytes] | None = None) -> None:
        self.root = root
        self.package = package
        self._modules: dict[str, Module | None] = {
            name: Module(name, text, self._path(name) or root)
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
        resolved = self._resolve(module, name, frozenset())
        if resolved is None:
            return None
        where, node = resolved
        if node is None:
            return Definition("foreign")
        if not isinstance(node, ast.ClassDef):
            return None if member else _describe(node, method=False)
        return self._member(where, node, member) if member else self._constructor(where, node)

    def _path(self, module: str) -> Path | None:
        words = module.split(".")
        if words[0] != self.package:
            return None
        base = self.root.joinpath(*words[1:])
        paths = (base / "__init__.py", base.with_name(f"{base.name}.py"))
        return next((path for path in paths if path.is_file()), None)

    def module(self, name: str) -> Module | None:
        """The parsed module; None: not there.

        Raises:
            SyntaxError, OSError: its file cannot be parsed or read.
        """
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = Module(name, path.read_bytes(), path) if path else None
        return self._modules[name]

    def _resolve(
        self, module: str, name: str, seen: frozenset[tuple[str, str]]
    ) -> tuple[str, ast.AST | None] | None:
        """(module that defines it, its node); node None = it comes from outside the package."""
        parsed = self.module(module)
        if parsed is None or (module, name) in seen:
            return None
        if name in parsed.definitions:
            return module, parsed.definitions[name]
        sources = parsed.imports.get(name, [])
        stars = [(star, name) for star, _ in parsed.imports.get("*", [])]
        for source, original in (*sources, *stars):
            resolved = self._resolve(source, original, seen | {(module, name)})
            if resolved is not None:
                return resolved
            if self.has_module(f"{source}.{original}"):
                return source, None
        outside = any(source.partition(".")[0] != self.package for source, _ in sources)
        return (module, None) if outside else None

    def _lineage(self, where: str, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """A class of the module ``where``, and all its bases inside the package."""
        yield node
        for base in node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(name, ast.Name):
                match self._resolve(where, name.id, frozenset()):
                    case str(module), ast.ClassDef() as class_ if class_ is not node:
                        yield from self._lineage(module, class_)

    def _member(self, where: str, node: ast.ClassDef, name: str) -> Definition | None:
        for each in self._lineage(where, node):
            if each not in self._members:
                self._members[each] = _own_members(each)
            if name in self._members[each]:
                return self._members[each][name]
        return None

    def _constructor(self, where: str, node: ast.ClassDef) -> Definition:
        lineage = [*self._lineage(where, node)]
        for each in lineage:
            if _is_dataclass(each):
                return Definition("class", _fields(lineage[lineage.index(each) :]))
            for item in statements(each.body):
                if isinstance(item, FUNCTIONS) and item.name == "__init__":
                    return Definition("class", _describe(item, method=True).signature)
        return Definition("class")


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of one scope, those inside ``if``, ``try`` and ``with`` too."""
    for node in body:
        yield node
        if isinstance(node, _OPEN):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def _bound(node: ast.AST) -> set[str]:
    """Names that a definition or an assignment binds."""
    targets: list[ast.expr] = []
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def _own_members(node: ast.ClassDef) -> dict[str, Definition]:
    """Methods, class attributes and what methods assign to ``self``; bases left out."""
    members: dict[str, Definition] = {}
    for item in statements(node.body):
        for name in _bound(item):
            members.setdefault(name, _describe(item, method=True))
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(ast.Name("self"), name, ast.Store()):
                members.setdefault(name, Definition("value"))
    return members


def _is_dataclass(node: ast.ClassDef) -> bool:
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(d).endswith("dataclass") for d in decorators)


def _fields(lineage: list[ast.ClassDef]) -> Signature:
    """The constructor of a dataclass, by its fields and those of its bases."""
    fields: dict[str, Parameter] = {}
    for node in reversed([each for each in lineage if _is_dataclass(each)]):
        for item in statements(node.body):
            match item:
                case ast.AnnAssign(ast.Name(name), said) if "ClassVar" not in ast.unparse(said):
                    before = [each.default is each.empty for each in fields.values()]
                    # A field without default may follow one with a default by keyword alone.
                    later = item.value is None and not all(before)
                    kind = Parameter.KEYWORD_ONLY if later else Parameter.POSITIONAL_OR_KEYWORD
                    fields[name] = Parameter(name, kind, default=_default(item.value))
    return Signature(sorted(fields.values(), key=lambda each: each.kind))


def _default(node: ast.expr | None) -> object:
    return Parameter.empty if node is None else _Text(ast.unparse(node))


def _describe(node: ast.AST, *, method: bool) -> Definition:
    decorators = {ast.unparse(each) for each in getattr(node, "decorator_list", [])}
    as_value = {"property", "cached_property", "functools.cached_property"}
    if not isinstance(node, FUNCTIONS) or (method and decorators & as_value):
        return Definition("value")
    args, kinds = node.args, Parameter
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    parameters = [
        Parameter(each.arg, kinds.POSITIONAL_OR_KEYWORD, default=_default(default))
        for each, default in zip(positional, defaults, strict=True)
    ]
    if method and "staticmethod" not in decorators:
        parameters = parameters[1:]
    if args.vararg is not None:
        parameters.append(Parameter(args.vararg.arg, kinds.VAR_POSITIONAL))
    parameters += [
        Parameter(each.arg, kinds.KEYWORD_ONLY, default=_default(default))
        for each, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg is not None:
        parameters.append(Parameter(args.kwarg.arg, kinds.VAR_KEYWORD))
    return Definition("function", Signature(parameters))
