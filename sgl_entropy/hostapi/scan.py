"""Every use that a program makes of a host package, read from the sources of both.

The program is our own modules, and the lines that our patches add to the host's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from sgl_entropy.hostapi.inference import FUNCTIONS, Inference, Scope, Thing, own_nodes, targets
from sgl_entropy.hostapi.sources import SourceTree
from sgl_entropy.hostapi.uses import Kind, Use


@dataclass(frozen=True)
class Program:
    """What uses the host.

    Attributes:
        ours: our modules, dotted.
        patched: module of the host -> numbers of the lines that are ours in it.
        stands_for: class of ours -> ``module:Class`` of the host whose place it takes.
        prefixes: what is left out of our modules' names in ``Use.by``.
    """

    ours: tuple[str, ...]
    patched: Mapping[str, frozenset[int]] = field(default_factory=dict)
    stands_for: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()


class Scan:
    """The uses of ``host`` (its sources as they are released) by ``program``.

    Args:
        inference: over the host's sources as they are patched, and ours.

    Attributes:
        unknown: where we use an attribute that no class of the host's has that it may be asked
            of: a wrong annotation, or an attribute that comes from elsewhere.
    """

    def __init__(self, host: SourceTree, program: Program, inference: Inference) -> None:
        self.host = host
        self.program = program
        self.inference = inference
        self.unknown: dict[str, str] = {}
        self._found: dict[Use, set[str]] = {}
        packages = {name.rpartition(".")[0] for name in program.ours}
        self._holders: list[Scope] = []
        self._ours = packages | set(program.ours)

    def run(self) -> tuple[Use, ...]:
        """All uses, sorted; where several modules make the same one, ``by`` names each."""
        work = list(self._work())
        growing = True
        while growing:
            self._found.clear()
            self.unknown.clear()
            for scope in self._holders:
                self._holder(scope)
            for scope, nodes in work:
                self._read(scope, nodes)
            growing = self.inference.again()
        more = {use.where for use in self._found if use.kind != "has"}
        return tuple(
            replace(use, by=", ".join(sorted(by)))
            for use, by in sorted(self._found.items(), key=lambda item: item[0].order)
            if use.kind != "has" or use.where not in more
        )

    def _work(self) -> Iterator[tuple[Scope, list[ast.AST]]]:
        """Every scope with what is ours in it; the host's functions are noted on the way."""
        for name in (*self.program.ours, *self.program.patched):
            module = self.inference.module(name)
            assert module is not None, f"no module {name}"
            lines = self.program.patched.get(name)
            for scope in self.inference.scopes(module):
                nodes = own_nodes(scope.node)
                for each in [node for node in nodes if isinstance(node, ast.ClassDef)]:
                    nodes += own_nodes(each)
                mine = nodes if lines is None else [n for n in nodes if _line(n) in lines]
                if lines is not None and self._holds_ours(scope, nodes, mine):
                    self._holders.append(scope)
                if mine:
                    yield scope, mine

    def _holds_ours(self, scope: Scope, nodes: list[ast.AST], mine: list[ast.AST]) -> bool:
        """Whether lines of a function are ours, or it calls what we put into its module."""
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        sources = (each for name in names for each in self.inference.imported(name, scope))
        return bool(mine) or any(module in self._ours for module, _ in sources)

    def _read(self, scope: Scope, nodes: list[ast.AST]) -> None:
        patched = scope.module.name in self.program.patched
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                self._import(node, scope)
            elif isinstance(node, ast.Attribute):
                self._attribute(self.inference.of(node.value, scope), node.attr, node, scope)
            elif isinstance(node, ast.Call):
                self._call(node, scope)
            elif isinstance(node, ast.ClassDef):
                self._class(node, scope)
            elif isinstance(node, ast.Name) and patched:
                self._host_name(node.id, scope)
            for target, (value, path) in targets(node):
                if isinstance(target, ast.Attribute):
                    given = self.inference.project(self.inference.of(value, scope), path)
                    for owner in self.inference.of(target.value, scope):
                        self.inference.stored(owner, target.attr, given)

    def _holder(self, scope: Scope) -> None:
        at: Scope | None = scope
        while at is not None and at.outer is not None:
            self._replaces(at.module.name, at.function, scope)
            at = at.outer

    def _host_name(self, name: str, scope: Scope) -> None:
        module = self.host.module(scope.module.name)
        nodes = module.names.get(name, []) if module else []
        if any(not isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
            self._add("has", scope.module.name, name, scope)
        for source in self.inference.imported(name, scope):
            if self._is_host(source[0]):
                self._add("has", *source, scope)

    # What ours does

    def _import(self, node: ast.ImportFrom, scope: Scope) -> None:
        at = self.host.module(scope.module.name)
        for alias in node.names:
            bound = alias.asname or alias.name
            before = at.names.get(bound, []) if at else []
            if not self._is_host(node.module or ""):
                if any(isinstance(each, FUNCTIONS) for each in before):
                    self._replaces(scope.module.name, bound, scope)
            elif not before:
                self._add("has", node.module or "", alias.name, scope)

    def _attribute(self, owners: Iterable[Thing], name: str, node: ast.expr, scope: Scope) -> None:
        owners = frozenset(owners)
        hosts = {host for owner in owners for host in self._hosts(owner)}
        if name.startswith("__") or not hosts:
            return
        held = [host for host in hosts if self._has(host, name)]
        for host in held:
            self._add("has", host.module, f"{host.name}.{name}", scope)
        if not held and not any(
            self.inference.member(owner, name) or self.inference.is_stored(owner, name)
            for owner in owners
        ):
            names = ", ".join(sorted(host.name for host in hosts))
            self.unknown[f"{scope.module.name}:{node.lineno}: {names}"] = name

    def _call(self, call: ast.Call, scope: Scope) -> None:
        patched = self.program.patched.get(scope.module.name)
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if patched is not None and any(argument.lineno not in patched for argument in given):
            return
        for thing in self.inference.of(call.func, scope):
            for callee in self.inference.called(thing) if thing.kind == "instance" else (thing,):
                if callee.kind not in ("class", "function") or not callee.module:
                    continue
                if not self._is_host(callee.module):
                    self.inference.passed(callee, call, scope)
                elif thing.kind == "instance":
                    for host in self._hosts(thing):
                        self._calls(
                            host.module, f"{host.name}.{callee.name.split('.')[1]}", call, scope
                        )
                elif "." not in callee.name:
                    name = call.func.id if isinstance(call.func, ast.Name) else ""
                    sources = self.inference.imported(name, scope)
                    known = [source for source in sources if self._is_host(source[0])]
                    for source in known or [(callee.module, callee.name)]:
                        self._calls(*source, call, scope)
        match call.func, call.args:
            case ast.Attribute(value, name), _:
                for owner in self.inference.of(value, scope):
                    for host in self._hosts(owner):
                        whole = host.name if name == "__init__" else f"{host.name}.{name}"
                        self._calls(host.module, whole, call, scope)
            case ast.Name("getattr" | "hasattr"), [value, ast.Constant(str(name)), *_]:
                owners = self.inference.of(value, scope)
                hosts = {host for owner in owners for host in self._hosts(owner)}
                asked = frozenset(host for host in hosts if self._has(host, name))
                self._attribute(asked, name, call, scope)

    def _calls(self, module: str, name: str, call: ast.Call, scope: Scope) -> None:
        definition = self.host.find(module, name)
        if definition is None or definition.parameters is None:
            return
        positional = [p.name for p in definition.parameters if not p.keyword_only]
        positional += [f"argument {n}" for n in range(len(positional) + 1, len(call.args) + 1)]
        words = list(positional[: len(call.args)])
        if any(isinstance(argument, ast.Starred) for argument in call.args):
            words = ["*"]
        words += [f"{keyword.arg}=" if keyword.arg else "**" for keyword in call.keywords]
        self._add("calls", module, name, scope, tuple(words))

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        """A class of ours: what it overrides, and what it has of the class it stands for."""
        if scope.module.name in self.program.patched:
            self._add("has", scope.module.name, node.name, scope)
            return
        hosts = [*self._hosts(Thing("class", scope.module.name, node.name))]
        if node.name in self.program.stands_for:
            module, _, name = self.program.stands_for[node.name].partition(":")
            hosts.append(Thing("class", module, name))
        methods = {item.name: item for item in node.body if isinstance(item, FUNCTIONS)}
        values = {
            target.attr
            for item in ast.walk(node)
            for target, _ in targets(item)
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
        }
        for host in hosts:
            for name in values - set(methods):
                if self._has(host, name):
                    self._add("has", host.module, f"{host.name}.{name}", scope)
            for name, method in methods.items():
                definition = self.host.find(host.module, f"{host.name}.{name}")
                if name == "__init__" or definition is None or definition.parameters is None:
                    continue
                mine = [argument.arg for argument in method.args.args[1:]]
                theirs = [parameter.name for parameter in definition.parameters]
                # A method of the same name that takes other things is called by us alone.
                if mine == theirs[: len(mine)]:
                    self._replaces(host.module, f"{host.name}.{name}", scope)

    # Rows

    def _is_host(self, module: str) -> bool:
        return module.partition(".")[0] == self.host.package

    def _has(self, host: Thing, name: str) -> bool:
        return self.host.find(host.module, f"{host.name}.{name}") is not None

    def _hosts(self, thing: Thing) -> Iterator[Thing]:
        """The host's classes that an instance (or a class) is one of; of ours, its bases."""
        if thing.kind in ("class", "instance"):
            if self._is_host(thing.module):
                yield thing
            else:
                for base in self.inference.bases(thing):
                    yield from self._hosts(base)

    def _replaces(self, module: str, name: str, scope: Scope) -> None:
        definition = self.host.find(module, name)
        if definition is not None and definition.parameters is not None:
            words = tuple(parameter.name for parameter in definition.parameters)
            self._add("replaces", module, name, scope, words)

    def _add(
        self, kind: Kind, module: str, name: str, scope: Scope, words: tuple[str, ...] = ()
    ) -> None:
        who = scope.module.name
        if who in self.program.patched:
            who = f"the patches of {who.rpartition('.')[2]}"
        for prefix in self.program.prefixes:
            who = who.removeprefix(prefix)
        self._found.setdefault(Use(kind, module, name, "", words), set()).add(who)


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)
