"""What an expression may stand for, read from sources: classes, functions, instances, containers.

Ours, and only as good as its use needs: annotations, assignments, loops, returns and what callers
pass are followed through the packages that are given; branches are not told apart, so an answer
holds every possibility that was seen. What comes from elsewhere (torch, numbers) is nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Literal

from sgl_entropy.hostapi.sources import Module, SourceTree, imported, statements

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*FUNCTIONS, ast.Lambda, ast.ClassDef)
_ITEMS = frozenset(
    {"List", "list", "Sequence", "Iterable", "Iterator", "Collection", "Set", "set", "deque"}
)
_VALUES = frozenset({"Dict", "dict", "Mapping", "MutableMapping", "DefaultDict"})
_PLAIN = frozenset({"Optional", "Union", "ClassVar", "Final", "Annotated"})
_DEEPEST = 4
# Functions that give their first argument back, or its elements in another order.
_SAME = frozenset({"list", "tuple", "sorted", "reversed", "iter", "copy", "deepcopy", "replace"})


@dataclass(frozen=True)
class Thing:
    """One possibility.

    Attributes:
        kind: ``items`` is a container of ``parts[0]``, ``tuple`` one of each of its parts.
        module, name: where it is defined: ``Class``, ``function`` or ``Class.method``.
        bound: of a method: whether its first parameter is given already.
    """

    kind: Literal["module", "class", "instance", "function", "items", "tuple"]
    module: str = ""
    name: str = ""
    parts: tuple[Things, ...] = ()
    bound: bool = False


Things = frozenset[Thing]
NOTHING: Things = frozenset()
# (expression, what to take of its value: a tuple's part by number, None = an element)
Source = tuple[ast.expr, tuple[int | None, ...]]


@dataclass(eq=False)
class Scope:
    """A module's or a function's names.

    Attributes:
        owner: the class whose method it is, else empty.
        values, annotations, inside: name -> what is assigned, its annotation, what is defined or
            imported here.
    """

    module: Module
    node: ast.AST
    owner: str = ""
    outer: Scope | None = None
    values: dict[str, list[Source]] = field(default_factory=dict)
    annotations: dict[str, list[ast.expr]] = field(default_factory=dict)
    inside: dict[str, list[ast.AST]] = field(default_factory=dict)

    @property
    def function(self) -> str:
        """``Class.method`` or ``function``; empty for a module."""
        name = getattr(self.node, "name", "")
        return f"{self.owner}.{name}" if self.owner and name else name


@dataclass(frozen=True)
class Member:
    """One statement that gives a class an attribute; ``scope`` is the method that assigns it."""

    thing: Thing
    node: ast.AST
    scope: Scope | None = None


def _depth(thing: Thing) -> int:
    return 1 + max((_depth(inner) for part in thing.parts for inner in part), default=0)


def _boxed(kind: Literal["items", "tuple"], *parts: Things) -> Things:
    """A container of these. Deep ones are cut off: one that is put into itself has no end."""
    kept = tuple(frozenset(t for t in part if _depth(t) < _DEEPEST) for part in parts)
    return frozenset({Thing(kind, parts=kept)}) if any(kept) else NOTHING


@cache
def _expression(text: str, module: str) -> ast.expr:
    """A type written as a string; a module's same text is the same node, which keeps its answer."""
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return ast.Constant(None)


def own_nodes(node: ast.AST) -> list[ast.AST]:
    """What is below ``node``, down to and including scopes inside it, not what is in those."""
    found, todo = [], [node]
    while todo:
        for child in ast.iter_child_nodes(todo.pop()):
            found.append(child)
            if not isinstance(child, _SCOPES):
                todo.append(child)
    return found


def targets(node: ast.AST) -> Iterator[tuple[ast.expr, Source]]:
    """(target, its source) of each single name or attribute that a statement assigns."""
    pairs: list[tuple[ast.expr, ast.expr, tuple[int | None, ...]]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value, ()) for target in node.targets]
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        pairs = [(node.target, node.value, ())]
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        pairs = [(node.target, node.iter, (None,))]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        pairs = [(node.optional_vars, node.context_expr, ())]
    for target, value, path in pairs:
        if isinstance(target, ast.Tuple | ast.List):
            pairs += [(part, value, (*path, i)) for i, part in enumerate(target.elts)]
        elif not isinstance(target, ast.Starred):
            yield target, (value, path)


class Inference:
    """Asks what expressions stand for, over the sources of some packages.

    Answers grow while more of a program is read (``passed``, ``stored``): walk it again with
    ``again`` until that returns False.

    Args:
        trees: the packages.
        narrowed: ``module:Class`` -> the classes that an annotation with it stands for as well.
    """

    def __init__(self, *trees: SourceTree, narrowed: Mapping[str, tuple[str, ...]]) -> None:
        self._trees = {tree.package: tree for tree in trees}
        self._narrowed = narrowed
        self._known: dict[object, Things] = {}
        self._asked: set[object] = set()
        self._scopes: dict[ast.AST, Scope] = {}
        self._members: dict[tuple[str, str], dict[str, list[Member]]] = {}
        self._grown = False

    def again(self) -> bool:
        """Whether answers have grown since the last call; then everything is to be asked anew."""
        grown, self._grown = self._grown, False
        self._asked.clear()
        return grown

    def _add(self, key: object, things: Things) -> Things:
        known = self._known.get(key, NOTHING)
        if not things <= known:
            self._known[key] = known = known | things
            self._grown = True
        return known

    def _ask(self, key: object, answer: Callable[[], Things]) -> Things:
        """Answer once a round; what asks for itself on the way gets what is known so far."""
        if key in self._asked:
            return self._known.get(key, NOTHING)
        self._asked.add(key)
        return self._add(key, answer())

    # Modules and scopes

    def module(self, name: str) -> Module | None:
        tree = self._trees.get(name.partition(".")[0])
        return tree.module(name) if tree else None

    def scope(
        self, module: Module, node: ast.AST, owner: str = "", outer: Scope | None = None
    ) -> Scope:
        """The scope that ``node`` (a module's body, a function, a lambda) opens."""
        if node not in self._scopes:
            scope = self._scopes[node] = Scope(module, node, owner, outer)
            for each in own_nodes(node):
                for target, source in targets(each):
                    if isinstance(target, ast.Name):
                        scope.values.setdefault(target.id, []).append(source)
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    scope.annotations.setdefault(each.target.id, []).append(each.annotation)
                elif isinstance(each, ast.arg):
                    scope.values.setdefault(each.arg, [])
                    if each.annotation is not None:
                        scope.annotations.setdefault(each.arg, []).append(each.annotation)
                elif isinstance(each, ast.Import | ast.ImportFrom):
                    for alias in each.names:
                        bound = alias.asname or alias.name.partition(".")[0]
                        scope.inside.setdefault(bound, []).append(each)
                elif isinstance(each, (*FUNCTIONS, ast.ClassDef)):
                    scope.inside.setdefault(each.name, []).append(each)
        return self._scopes[node]

    def scopes(self, module: Module) -> Iterator[Scope]:
        """The module's own scope and those of everything that is defined in it."""

        def below(scope: Scope, node: ast.AST, owner: str) -> Iterator[Scope]:
            for each in own_nodes(node):
                if isinstance(each, ast.ClassDef):
                    yield from below(scope, each, each.name)
                elif isinstance(each, _SCOPES):
                    inner = self.scope(module, each, owner, scope)
                    yield inner
                    yield from below(inner, each, owner)

        top = self.scope(module, module.body)
        yield top
        yield from below(top, module.body, "")

    def global_(self, module: str, name: str) -> Things:
        """What ``name`` stands for in a module, through its imports."""
        return self._ask(("global", module, name), lambda: self._global(module, name))

    def _global(self, module: str, name: str) -> Things:
        parsed = self.module(module)
        if parsed is None:
            return NOTHING
        found = NOTHING
        for node in parsed.names.get(name, []):
            found |= self._defined(parsed, node, name)
        scope = self.scope(parsed, parsed.body)
        if not found:
            found = self._assigned(scope, name)
        if name not in parsed.names:
            for star in parsed.stars:
                found |= self.global_(star, name)
        return found

    def _defined(self, module: Module, node: ast.AST, name: str) -> Things:
        """What a ``def``, ``class`` or ``import`` statement binds to ``name``."""
        if isinstance(node, FUNCTIONS):
            return frozenset({Thing("function", module.name, name)})
        if isinstance(node, ast.ClassDef):
            return frozenset({Thing("class", module.name, name)})
        found = NOTHING
        if isinstance(node, ast.Import | ast.ImportFrom):
            for source, original in imported(module, node, name):
                if original:
                    found |= self.global_(source, original)
                whole = f"{source}.{original}" if original else source
                if not found and self.module(whole) is not None:
                    found |= {Thing("module", whole)}
        return found

    # Names and expressions

    def _assigned(self, scope: Scope, name: str) -> Things:
        found = NOTHING
        for value, path in scope.values.get(name, []):
            found |= self.project(self.of(value, scope), path)
        for annotation in scope.annotations.get(name, []):
            found |= self.annotation(annotation, scope)
        return found

    def _name(self, name: str, scope: Scope) -> Things:
        at: Scope | None = scope
        while at is not None and at.outer is not None:
            if name in at.values or name in at.annotations or name in at.inside:
                return self._ask(("name", at.node, name), partial(self._local, at, name))
            at = at.outer
        return self.global_(scope.module.name, name)

    def _local(self, scope: Scope, name: str) -> Things:
        found = self._assigned(scope, name)
        for node in scope.inside.get(name, []):
            found |= self._defined(scope.module, node, name)
        if isinstance(scope.node, FUNCTIONS):
            if not any(self._settled(thing) for thing in found):
                key = ("passed", scope.module.name, scope.function, name)
                found |= self._known.get(key, NOTHING)
            arguments = [*scope.node.args.posonlyargs, *scope.node.args.args]
            if scope.owner and arguments and name == arguments[0].arg:
                decorators = {ast.unparse(each) for each in scope.node.decorator_list}
                if "staticmethod" not in decorators:
                    kind: Literal["class", "instance"]
                    kind = "class" if "classmethod" in decorators else "instance"
                    found |= {Thing(kind, scope.module.name, scope.owner)}
        return found

    def of(self, node: ast.expr, scope: Scope) -> Things:
        """What an expression may stand for."""
        return self._ask(("of", node), lambda: self._of(node, scope))

    def _of(self, node: ast.expr, scope: Scope) -> Things:
        match node:
            case ast.Name(name):
                return self._name(name, scope)
            case ast.Attribute(value, name):
                return self.attribute(self.of(value, scope), name)
            case ast.Call():
                return self._result(node, scope)
            case ast.Subscript(value, ast.Slice()):
                return self.of(value, scope)
            case ast.Subscript(value, ast.Constant(int(number))) if number >= 0:
                return self.project(self.of(value, scope), (number,))
            case ast.Subscript(value, _):
                return self.project(self.of(value, scope), (None,))
            case ast.Tuple(parts) | ast.List(parts):
                inside = [p.value if isinstance(p, ast.Starred) else p for p in parts]
                return _boxed("tuple", *(self.of(p, scope) for p in inside))
            case ast.ListComp(part) | ast.GeneratorExp(part) | ast.SetComp(part):
                return _boxed("items", self.of(part, scope))
            case ast.IfExp(_, one, other):
                return self.of(one, scope) | self.of(other, scope)
            case ast.BoolOp(_, parts):
                return frozenset().union(*(self.of(part, scope) for part in parts))
            case ast.NamedExpr(_, value):
                return self.of(value, scope)
        return NOTHING

    def project(self, things: Things, path: tuple[int | None, ...]) -> Things:
        """A part of each value: ``None`` = any element, a number = that one of a tuple."""
        for step in path:
            parts = NOTHING
            for thing in things:
                if thing.kind == "tuple" and step is not None:
                    parts |= thing.parts[step] if step < len(thing.parts) else NOTHING
                elif thing.kind in ("tuple", "items"):
                    parts = parts.union(*thing.parts)
            things = parts
        return things

    def annotation(self, node: ast.expr, scope: Scope) -> Things:
        """Instances of the classes that an annotation names."""
        match node:
            case ast.Constant(str(text)):
                return self.annotation(_expression(text, scope.module.name), scope)
            case ast.Name() | ast.Attribute():
                found = (t for t in self.of(node, scope) if t.kind == "class")
                return frozenset(i for thing in found for i in self.instances(thing))
            case ast.BinOp(left, ast.BitOr(), right):
                return self.annotation(left, scope) | self.annotation(right, scope)
            case ast.Subscript(head, inside):
                word = head.attr if isinstance(head, ast.Attribute) else ast.unparse(head)
                arguments = inside.elts if isinstance(inside, ast.Tuple) else [inside]
                parts = [self.annotation(each, scope) for each in arguments]
                if word in ("Tuple", "tuple"):
                    if len(arguments) == 2 and ast.unparse(arguments[1]) == "...":
                        return _boxed("items", parts[0])
                    return _boxed("tuple", *parts)
                if word in _ITEMS or word in _VALUES:
                    return _boxed("items", parts[-1 if word in _VALUES else 0])
                if word in ("Type", "type"):
                    return self.of(arguments[0], scope)
                if word in _PLAIN:
                    return frozenset().union(*parts)
        return NOTHING

    def _settled(self, thing: Thing) -> bool:
        """Whether an annotation says it all: a protocol's class is another one."""
        found = self._class(thing) if thing.kind == "instance" else None
        return found is not None and all("Protocol" not in ast.unparse(b) for b in found[1].bases)

    def instances(self, thing: Thing) -> Iterator[Thing]:
        """An instance of a class, and of those that are known to stand behind it."""
        yield Thing("instance", thing.module, thing.name)
        for other in self._narrowed.get(f"{thing.module}:{thing.name}", ()):
            module, _, name = other.partition(":")
            yield Thing("instance", module, name)

    # Classes

    def _class(self, thing: Thing) -> tuple[Module, ast.ClassDef] | None:
        module = self.module(thing.module)
        nodes = module.names.get(thing.name, []) if module else []
        found = next((node for node in nodes if isinstance(node, ast.ClassDef)), None)
        return (module, found) if module and found else None

    def bases(self, thing: Thing) -> list[Thing]:
        """The classes that a class names as its bases, as far as they are known."""
        found = self._class(thing)
        if found is None:
            return []
        module, node = found
        scope = self.scope(module, module.body)
        heads = (each.value if isinstance(each, ast.Subscript) else each for each in node.bases)
        return [base for head in heads for base in self.of(head, scope) if base.kind == "class"]

    def member(self, thing: Thing, name: str) -> list[Member]:
        """What gives a class (or a base of it) this attribute; empty: nothing that is known."""
        key = (thing.module, thing.name)
        if key not in self._members:
            self._members[key] = dict(self._collect(thing))
        found = self._members[key].get(name, [])
        for base in () if found else self.bases(thing):
            found = found or self.member(base, name)
        return found

    def _collect(self, thing: Thing) -> Iterator[tuple[str, list[Member]]]:
        members: dict[str, list[Member]] = {}
        found = self._class(thing)
        if found is None:
            return
        module, node = found
        top = self.scope(module, module.body)
        for item in statements(node.body):
            names = [item.name] if isinstance(item, FUNCTIONS) else []
            if isinstance(item, ast.Assign | ast.AnnAssign):
                bound = item.targets if isinstance(item, ast.Assign) else [item.target]
                names = [each.id for each in bound if isinstance(each, ast.Name)]
            for name in names:
                members.setdefault(name, []).append(Member(thing, item))
            if isinstance(item, FUNCTIONS):
                scope = self.scope(module, item, node.name, top)
                for each in own_nodes(item):
                    for target, _ in targets(each):
                        match target:
                            case ast.Attribute(ast.Name("self"), attribute):
                                members.setdefault(attribute, []).append(Member(thing, each, scope))
        yield from members.items()

    def attribute(self, owners: Things, name: str) -> Things:
        """What ``owner.name`` may stand for."""
        found = NOTHING
        for owner in owners:
            if owner.kind == "module":
                inner = f"{owner.module}.{name}"
                found |= self.global_(owner.module, name)
                if self.module(inner) is not None:
                    found |= {Thing("module", inner)}
            elif owner.kind in ("class", "instance"):
                found |= self._known.get(("stored", owner.module, owner.name, name), NOTHING)
                for member in self.member(owner, name):
                    found |= self._value(owner, member, name)
        return found

    def _value(self, owner: Thing, member: Member, name: str) -> Things:
        at, node = member.thing, member.node
        if isinstance(node, FUNCTIONS):
            decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
            bound = "staticmethod" not in decorators
            bound = bound and (owner.kind == "instance" or "classmethod" in decorators)
            method = Thing("function", at.module, f"{at.name}.{name}", bound=bound)
            if decorators & {"property", "cached_property"}:
                return self._returns(method)
            return frozenset({method})
        module = self.module(at.module)
        assert module is not None
        scope = member.scope or self.scope(module, module.body)
        found = NOTHING
        if isinstance(node, ast.AnnAssign):
            found |= self.annotation(node.annotation, scope)
        for target, (value, path) in targets(node):
            if name == (target.attr if isinstance(target, ast.Attribute) else ast.unparse(target)):
                found |= self.project(self.of(value, scope), path)
        return found

    # Calls

    def parameters(self, thing: Thing) -> tuple[Scope, list[str]] | None:
        """A function's scope and the names of what a call may still give it by position."""
        module = self.module(thing.module)
        owner, _, name = thing.name.rpartition(".")
        if module is None:
            return None
        if owner:
            nodes = [m.node for m in self.member(Thing("class", thing.module, owner), name)]
        else:
            nodes = module.names.get(name, [])
        node = next((each for each in nodes if isinstance(each, FUNCTIONS)), None)
        if node is None:
            return None
        names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
        scope = self.scope(module, node, owner, self.scope(module, module.body))
        return scope, names[1:] if thing.bound else names

    def passed(self, thing: Thing, call: ast.Call, scope: Scope) -> None:
        """Let a function's (or a class's) parameters know what a call gives them."""
        function = thing
        if thing.kind == "class":
            starts = [m for m in self.member(thing, "__init__") if isinstance(m.node, FUNCTIONS)]
            if not starts:
                given = dict(zip(self._fields(thing), call.args, strict=False))
                given |= {k.arg: k.value for k in call.keywords if k.arg}
                for name, value in given.items():
                    self.stored(thing, name, self.of(value, scope))
                return
            at = starts[0].thing
            function = Thing("function", at.module, f"{at.name}.__init__", bound=True)
        known = self.parameters(function)
        if known is None:
            return
        inner, names = known
        given = dict(zip(names, call.args, strict=False))
        given |= {k.arg: k.value for k in call.keywords if k.arg}
        for name, value in given.items():
            if not isinstance(value, ast.Starred):
                key = ("passed", inner.module.name, inner.function, name)
                self._add(key, self.of(value, scope))

    def stored(self, owner: Thing, name: str, things: Things) -> None:
        """Something (or nothing that is known) is kept in an attribute of a class's instances."""
        key = ("stored", owner.module, owner.name, name)
        self._grown |= key not in self._known
        self._known.setdefault(key, NOTHING)
        self._add(key, things)

    def is_stored(self, owner: Thing, name: str) -> bool:
        """Whether something is, by any of what was read so far."""
        return ("stored", owner.module, owner.name, name) in self._known

    def imported(self, name: str, scope: Scope) -> list[tuple[str, str]]:
        """(module, name) that a name is imported from, where it is used; one for each branch."""
        at: Scope | None = scope
        while at is not None:
            nodes = [n for n in at.inside.get(name, []) if isinstance(n, ast.ImportFrom)]
            if nodes or (at.outer is not None and name in at.values):
                return [each for node in nodes for each in imported(at.module, node, name)]
            at = at.outer
        return []

    def _fields(self, thing: Thing) -> Iterator[str]:
        for base in self.bases(thing):
            yield from self._fields(base)
        found = self._class(thing)
        for item in statements(found[1].body) if found else ():
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                yield item.target.id

    def _result(self, call: ast.Call, scope: Scope) -> Things:
        found = NOTHING
        for thing in self.of(call.func, scope):
            if thing.kind == "class":
                found |= frozenset(self.instances(thing))
            elif thing.kind == "function":
                found |= self._returns(thing)
            elif thing.kind == "instance":
                found = found.union(*(self._returns(method) for method in self.called(thing)))
        if found:
            return found
        match call.func, call.args:
            case ast.Name("super"), []:
                bases = self.bases(Thing("class", scope.module.name, scope.owner))
                return frozenset(i for base in bases for i in self.instances(base))
            case ((ast.Name(name) | ast.Attribute(_, name)), [first, *_]) if name in _SAME:
                return self.of(first, scope)
            case ast.Name("zip"), parts:
                zipped = [self.project(self.of(part, scope), (None,)) for part in parts]
                return _boxed("items", _boxed("tuple", *zipped))
            case ast.Name("enumerate"), [first, *_]:
                each = self.project(self.of(first, scope), (None,))
                return _boxed("items", _boxed("tuple", NOTHING, each))
            case ast.Name("getattr"), [first, ast.Constant(str(name)), *more]:
                found = self.attribute(self.of(first, scope), name)
                return found.union(*(self.of(default, scope) for default in more))
        return NOTHING

    def called(self, thing: Thing) -> Things:
        """The method that runs when an instance is called: torch's modules run ``forward``."""
        own = self.attribute(frozenset({thing}), "__call__")
        return own or self.attribute(frozenset({thing}), "forward")

    def _returns(self, thing: Thing) -> Things:
        return self._ask(("returns", thing.module, thing.name), lambda: self._returned_by(thing))

    def _returned_by(self, thing: Thing) -> Things:
        known = self.parameters(thing)
        if known is None:
            return NOTHING
        scope, _ = known
        node = scope.node
        assert isinstance(node, FUNCTIONS)
        found = self.annotation(node.returns, scope) if node.returns is not None else NOTHING
        if not found:
            for each in own_nodes(node):
                if isinstance(each, ast.Return) and each.value is not None:
                    found |= self.of(each.value, scope)
        return found
