"""Every use that a program makes of a host package, read from the sources of both.

The program is our own modules, and the lines that our patches add to the host's. Values are not
followed: what an object is, its name says. In one module a name stands for the host's classes that
its annotations or a constructor's call name, anywhere in the module; beside that stands a table of
names. An expression goes by the name that it ends in: ``batch.reqs[0]`` is a ``reqs``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sgl_entropy.apiuse.sources import FUNCTIONS, Module, SourceTree, statements
from sgl_entropy.apiuse.uses import Use

# (module, name) in the host
Names = set[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """One module of the program.

    Attributes:
        by: its name in ``Use.by``.
        lines: of a module of the host: numbers of the lines that are ours; None: all are.
    """

    module: Module
    by: str
    lines: frozenset[int] | None = None


def uses_of(host: SourceTree, parts: Iterable[Part], objects: Mapping[str, str]) -> tuple[Use, ...]:
    """All uses, sorted; where several modules make the same one, ``by`` names each.

    Args:
        host: as it is released, without our lines.
        objects: ``module:Class`` of the host -> names of its objects, or of a class of ours that
            takes its place, with spaces between; ``module:function`` -> what we call it.

    Raises:
        ValueError: an object is annotated as one of the host's, and we use an attribute of it that
            its class does not have.
    """
    table: dict[str, Names] = defaultdict(set)
    for where, words in objects.items():
        module, _, name = where.partition(":")
        for word in words.split():
            table[word].add((module, name))
    by = defaultdict(set)
    for part in parts:
        for use in _Reader(host, part, table).read():
            by[use].add(part.by)
    more = {use.order[:2] for use in by if use.kind != "has"}
    return tuple(
        replace(use, by=", ".join(sorted(by[use])))
        for use in sorted(by, key=lambda use: use.order)
        if use.kind != "has" or use.order[:2] not in more
    )


def _word(node: ast.AST) -> str:
    """The name that an expression ends in; empty: it ends in none."""
    match node:
        case ast.Name(word) | ast.Attribute(attr=word):
            return word
        case ast.Call(inner) | ast.Subscript(inner):
            return _word(inner)
    return ""


class _Reader:
    """Reads the uses that one part makes.

    Attributes:
        before: names that the part's module has without our lines.
        imports: name -> what it is imported from, by any import of the part.
        added: names that our lines bring from elsewhere into a module of the host.
        classes: name -> the host's classes that an object of this name may have.
        annotated: of our modules: name -> the host's class that is its whole annotation.
    """

    def __init__(self, host: SourceTree, part: Part, objects: Mapping[str, Names]) -> None:
        self.host = host
        self.module = part.module
        self.lines = part.lines
        before = None if part.lines is None else host.module(part.module.name)
        self.defined = before.definitions if before else {}
        self.before = self.defined.keys() | (before.imports.keys() if before else set())
        nodes = [*ast.walk(self.module.body)]
        self.imports = self.module.imported(nodes)
        added = self.module.imported(node for node in nodes if self.lines and self._is_ours(node))
        self.added = {
            name for name, [(source, _), *_] in added.items() if not self._is_host(source)
        }
        self.classes: dict[str, Names] = defaultdict(set)
        self.annotated: dict[str, str] = {}
        for node in nodes:
            match node:
                case (
                    ast.arg(word, ast.expr() as said)
                    | ast.AnnAssign(ast.Name(word) | ast.Attribute(attr=word), said)
                    | ast.FunctionDef(name=word, returns=ast.expr() as said)
                    | ast.Assign([ast.Name(word) | ast.Attribute(attr=word)], ast.Call(said))
                ):
                    self.classes[word] |= set(filter(self._is_class, self._said(said)))
                    if part.lines is None and isinstance(said, ast.Name) and self.classes[word]:
                        self.annotated[word] = said.id
        for word, names in objects.items():
            self.classes[word] = self.classes[word] or names

    def read(self) -> Iterator[Use]:
        """Every use, without ``by``; a use comes as often as it is made."""
        for block in statements(self.module.body.body):
            owner = block if isinstance(block, ast.ClassDef) else None
            for node in ast.walk(block):
                if self._is_ours(node):
                    yield from self._uses(node, owner)
            if self.lines is not None:
                yield from self._changed(block)

    def _is_ours(self, node: ast.AST) -> bool:
        return self.lines is None or getattr(node, "lineno", 0) in self.lines

    # What a name stands for

    def _is_host(self, module: str) -> bool:
        return module.partition(".")[0] == self.host.package

    def _is_class(self, name: tuple[str, str]) -> bool:
        definition = self.host.find(*name)
        return definition is not None and definition.kind == "class"

    def _named(self, name: str) -> Names:
        """What the host has that is imported by this name, or defined in the host's module."""
        names = {source for source in self.imports.get(name, ()) if self._is_host(source[0])}
        return names | ({(self.module.name, name)} if name in self.defined else set())

    def _said(self, annotation: ast.expr) -> Names:
        """The host's names in an annotation; one may be quoted."""
        nodes = [*ast.walk(annotation)]
        words = [node.id for node in nodes if isinstance(node, ast.Name)]
        words += [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
        return {name for word in words for name in self._named(word)}

    def _bases(self, node: ast.ClassDef) -> Names:
        """The host's classes that a class of ours is derived from."""
        names = set()
        for base in node.bases:
            names |= self._said(base)
            own = self.module.definitions.get(_word(base))
            names |= self._bases(own) if isinstance(own, ast.ClassDef) else set()
        return names

    def _of(self, node: ast.expr, owner: ast.ClassDef | None) -> Names:
        """The host's classes that an expression may be, or be an object of."""
        word = _word(node)
        if owner is None or word not in ("self", "cls", "super"):
            return self._named(word) | self.classes.get(word, set())
        if self.lines is not None:
            return {(self.module.name, owner.name)}
        stands_for = self.classes.get(owner.name, set()) if word != "super" else set()
        return self._bases(owner) | stands_for

    # What is used

    def _uses(self, node: ast.AST, owner: ast.ClassDef | None) -> Iterator[Use]:
        match node:
            case ast.ImportFrom():
                yield from self._imported(node)
            case ast.Name(name) if self.lines is not None:
                yield from (Use("has", *each, "") for each in self._named(name))
            case ast.Attribute(value, name):
                uses = [*self._has(value, name, owner)]
                if not uses and isinstance(value, ast.Name) and value.id in self.annotated:
                    where = f"{self.module.name}:{node.lineno}"
                    raise ValueError(f"{where}: {self.annotated[value.id]} has no {name}")
                yield from uses
            case ast.Call():
                yield from self._called(node, owner)
            case ast.ClassDef() if self.lines is not None:
                yield Use("has", self.module.name, node.name, "")
            case ast.ClassDef():
                yield from self._overridden(node)

    def _imported(self, node: ast.ImportFrom) -> Iterator[Use]:
        for bound, sources in self.module.imported([node]).items():
            for module, name in sources:
                if self._is_host(module) and bound not in self.before:
                    yield Use("has", module, name, "")
                elif not self._is_host(module) and bound in self.defined:
                    yield from self._replaced(self.module.name, bound)

    def _has(self, value: ast.expr, name: str, owner: ast.ClassDef | None) -> Iterator[Use]:
        for module, class_ in self._of(value, owner):
            if not name.startswith("__") and self.host.find(module, f"{class_}.{name}"):
                yield Use("has", module, f"{class_}.{name}", "")

    def _called(self, call: ast.Call, owner: ast.ClassDef | None) -> Iterator[Use]:
        if not all(self._is_ours(each) for each in (*call.args, *call.keywords)):
            return
        match call.func, call.args:
            case ast.Name("getattr" | "hasattr"), [value, ast.Constant(str(name)), *_]:
                yield from self._has(value, name, owner)
            case ast.Name(name), _:
                for each in self._named(name):
                    yield from self._passed(*each, call)
            case ast.Attribute(value, name), _:
                for module, class_ in self._of(value, owner):
                    whole = class_ if name == "__init__" else f"{class_}.{name}"
                    yield from self._passed(module, whole, call)
        # An object of torch's is called, which runs ``forward``; or a function, by the table.
        for module, name in self.classes.get(_word(call.func), set()):
            whole = f"{name}.forward" if self._is_class((module, name)) else name
            yield from self._passed(module, whole, call)

    def _passed(self, module: str, name: str, call: ast.Call) -> Iterator[Use]:
        definition = self.host.find(module, name)
        if definition is None or definition.signature is None:
            return
        words = list(definition.positional[: len(call.args)])
        words += [f"argument {n + 1}" for n in range(len(words), len(call.args))]
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            words = ["*"]
        words += [f"{keyword.arg}=" if keyword.arg else "**" for keyword in call.keywords]
        yield Use("calls", module, name, "", tuple(words))

    def _overridden(self, node: ast.ClassDef) -> Iterator[Use]:
        """What a class of ours overrides of its bases, or of the class whose place it takes."""
        for module, class_ in self._bases(node) | self.classes.get(node.name, set()):
            for method in node.body:
                if not isinstance(method, FUNCTIONS) or method.name == "__init__":
                    continue
                definition = self.host.find(module, f"{class_}.{method.name}")
                ours = tuple(argument.arg for argument in method.args.args[1:])
                # A method of the same name that takes other things is called by us alone.
                if definition and ours == definition.parameters[: len(ours)]:
                    yield from self._replaced(module, f"{class_}.{method.name}")

    def _changed(self, block: ast.stmt) -> Iterator[Use]:
        """The host's functions that hold lines of ours, or call what we put into their module."""
        class_ = f"{block.name}." if isinstance(block, ast.ClassDef) else ""
        for function in block.body if isinstance(block, ast.ClassDef) else [block]:
            if isinstance(function, FUNCTIONS):
                nodes = [*ast.walk(function)]
                names = [node for node in nodes if isinstance(node, ast.Name)]
                local = {node.arg for node in nodes if isinstance(node, ast.arg)}
                local |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
                calls_ours = {node.id for node in names} & self.added - local
                if calls_ours or any(map(self._is_ours, nodes)):
                    yield from self._replaced(self.module.name, class_ + function.name)

    def _replaced(self, module: str, name: str) -> Iterator[Use]:
        definition = self.host.find(module, name)
        if definition and definition.signature is not None:
            yield Use("replaces", module, name, "", definition.parameters)
