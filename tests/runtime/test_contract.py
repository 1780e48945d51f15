"""The table of SGLang's functions: complete, met by the real release, and never met by another."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgl_entropy
from sgl_entropy import patching
from sgl_entropy.hostapi.sources import Definition, SourceTree
from sgl_entropy.hostapi.uses import calls, check_uses, has, replaces
from sgl_entropy.patching.state import survey, upstream_contents
from sgl_entropy.patching.verbs import patched_contents
from sgl_entropy.runtime.v0_5_6.contract.table import CONTRACT, SGLANG, check_contract

OURS = Path(sgl_entropy.__file__).parent
ROOM = OURS / "runtime" / "v0_5_6"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import from SGLang in a file; ("sglang.x", "") for `import`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from ((name, "") for name in names if name.split(".")[0] == "sglang")


def test_every_import_from_sglang_is_in_the_table() -> None:
    known = {(use.module, use.name.split(".")[0]) for use in CONTRACT}
    used = {(path, *found) for path in ROOM.rglob("*.py") for found in imports(path)}
    assert len(used) > 15, "the scan found too little: is the room still there?"
    missing = [f"{p.name}: from {m} import {n}" for p, m, n in used if (m, n) not in known]
    assert not missing, f"add these to runtime/v0_5_6/contract.py: {sorted(missing)}"


def test_the_table_has_no_row_twice() -> None:
    rows = [(use.kind, use.where, use.parameters) for use in CONTRACT]
    assert len(rows) == len(set(rows))


def test_the_installed_release_meets_the_contract() -> None:
    install = patching.find_sglang()
    assert install.version == SGLANG
    assert [mismatch.line() for mismatch in check_contract(install.root)] == []


# file, text that is there, what takes its place, and what the mismatch must say
CHANGES = [
    (
        "speculative/eagle_worker.py",
        "def draft(self, batch:",
        "def draft(self, batches:",
        "eagle_worker.EAGLEWorker.draft (used by worker): expected (batch), found (batches): "
        "parameter 1 is batches, not batch",
    ),
    (
        "layers/sampler.py",
        "def sampling_from_probs_torch(\n",
        "def sampling_from_probs_torch(\n    must, \n",
        "parameter 1 is must, not probs",
    ),
    (
        "layers/attention/torch_native_backend.py",
        "def forward_decode(\n        self,\n        q,",
        "def forward_decode(\n        self,\n        q, sinks,",
        "TorchNativeAttnBackend.forward_decode (used by cpu.attention): expected "
        "(q, k, v, layer, forward_batch, save_kv_cache), found "
        "(q, sinks, k, v, layer, forward_batch, save_kv_cache=): new sinks",
    ),
    (
        "server_args.py",
        "    speculative_accept_threshold_acc: float",
        "    speculative_threshold_acc: float",
        "found that ServerArgs has no speculative_accept_threshold_acc",
    ),
    (
        "speculative/spec_info.py",
        "    flags: Optional[Iterable[str]] = None,\n",
        "",
        "no parameter flags",
    ),
    ("models/llama_eagle3.py", "", None, "found no module sglang.srt.models.llama_eagle3"),
]


def test_a_changed_sglang_is_refused_by_the_function_that_differs(tmp_path: Path) -> None:
    root = tmp_path / "sglang"
    source = patching.find_sglang().root
    keep = shutil.ignore_patterns("*.pyc", "__pycache__", "*.json", "*.so", "*.cu*", "*.h")
    shutil.copytree(source / "srt", root / "srt", copy_function=os.symlink, ignore=keep)
    (root / "__init__.py").touch()
    for name, old, new, _ in CHANGES:
        path = root / "srt" / name
        text = path.read_text()
        path.unlink()
        if new is not None:
            changed = text.replace(old, new)
            assert changed != text, f"{name} no longer has {old!r}"
            path.write_text(changed)
    lines = [mismatch.line() for mismatch in check_contract(root)]
    for name, _, _, expected in CHANGES:
        assert any(expected in line for line in lines), f"{name}: {expected!r} not in {lines}"
    gone = sum("no module sglang.srt.models.llama_eagle3" in line for line in lines)
    assert len(lines) == len(CHANGES) - 1 + gone, lines


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A package with every way of hiding a definition that SGLang uses."""
    files = {
        "__init__.py": "",
        "hub/__init__.py": "from .deep import *\nfrom host.hub.other import renamed as shown\n",
        "hub/deep.py": "def starred(a, b=1, *, c, d=2): ...\n",
        "hub/other.py": "def renamed(x): ...\n",
        "branches.py": (
            "import torch.nn as nn\nfrom outside import thing\n"
            "try:\n    from nowhere import maybe\nexcept ImportError:\n    def maybe(p): ...\n"
            "if True:\n    LIMIT = 3\n"
        ),
        "classes.py": (
            "from dataclasses import dataclass\nfrom typing import ClassVar\n"
            "from host.hub import starred\n"
            "class Base:\n"
            "    def __init__(self, size, *, eps=1.0):\n        self.size = size\n"
            "    def run(self, x, *rest, **more): ...\n"
            "    @property\n    def width(self): ...\n"
            "    @staticmethod\n    def plain(y): ...\n"
            "class Child(Base):\n    flag = True\n"
            "@dataclass\nclass Row:\n    kind: ClassVar[int] = 0\n    a: int\n    b: int = 1\n"
            "@dataclass\nclass Wide(Row):\n    c: int = 2\n"
        ),
        "broken.py": "def (:\n",
    }
    for name, text in files.items():
        path = tmp_path / "host" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "host"


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("host.hub", "starred", "(a, b=, *, c, d=)"),
        ("host.hub", "shown", "(x)"),
        ("host.hub", "renamed", None),
        ("host.classes", "starred", "(a, b=, *, c, d=)"),
        ("host.branches", "maybe", "(p)"),
        ("host.branches", "thing", "foreign"),
        ("host.branches", "LIMIT", "value"),
        ("host.classes", "Child", "(size, *, eps=)"),
        ("host.classes", "Child.run", "(x, *args, **kwargs)"),
        ("host.classes", "Child.width", "value"),
        ("host.classes", "Child.plain", "(y)"),
        ("host.classes", "Child.size", "value"),
        ("host.classes", "Child.flag", "value"),
        ("host.classes", "Base.flag", None),
        ("host.classes", "Wide", "(a, b=, c=)"),
        ("host.classes", "Wide.kind", "value"),
        ("host.nowhere", "x", None),
    ],
)
def test_definitions_are_found_through_imports_bases_and_branches(
    mini: Path, module: str, name: str, expected: str | None
) -> None:
    found = SourceTree(mini, "host").find(module, name)
    assert (found and found.describe()) == expected


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (calls("host.hub:starred", "a", "c=", by="t"), None),
        (calls("host.hub:starred", "a", by="t"), "c must be given as well"),
        (calls("host.hub:starred", "a", "b", "c", by="t"), "no positional parameter c"),
        (calls("host.hub:starred", "a", "c=", "e=", by="t"), "no parameter e"),
        (calls("host.classes:Child.run", "x", "y", "z=", by="t"), None),
        (calls("host.classes:Child", "size", "eps=", by="t"), None),
        (calls("host.classes:Child", "eps", by="t"), "parameter 1 is size, not eps"),
        (calls("host.classes:Child.flag", by="t"), "found a value, not a function"),
        (replaces("host.hub:starred", "a", "b", "c", "d", by="t"), None),
        (replaces("host.hub:starred", "a", "...", by="t"), None),
        (replaces("host.hub:starred", "a", "c", by="t"), "new b, d"),
        (replaces("host.hub:starred", "a", "c", "b", "d", by="t"), "another order"),
        (replaces("host.hub:shown", "x", "y", by="t"), "without y"),
        (has("host.classes:Row", "a", by="t"), None),
        (has("host.classes:Row", "c", by="t"), "Row has no c"),
        (has("host.branches:gone", by="t"), "host.branches has no gone"),
        (has("host.gone:x", by="t"), "found no module host.gone"),
        (has("host.broken:x", by="t"), "found no valid Python in"),
    ],
    ids=lambda value: value[0].kind if isinstance(value, tuple) else str(value),
)
def test_a_use_fits_or_the_mismatch_says_why(mini: Path, use, expected: str | None) -> None:
    mismatches = check_uses(mini, "host", use)
    if expected is None:
        assert mismatches == []
    else:
        assert len(mismatches) == 1
        assert expected in mismatches[0].line()
        assert use[0].where in mismatches[0].line()


def patched_sources() -> dict[str, str]:
    """SGLang's touched files with the shipped patches in them, whatever is installed."""
    install = patching.find_sglang()
    series = patching.load_series(install.version)
    upstream = upstream_contents(install, series, survey(install, series))
    return {n: d.decode() for n, d in patched_contents(series, upstream).items() if d is not None}


Bound = dict[str, tuple[str, str]]


def door_calls(name: str, text: str) -> Iterator[tuple[str, str, str, ast.Call | None]]:
    """(where, module, function, call) for all that a patched file takes from our runtime."""
    for node, bound in scoped(ast.parse(text, name), {}):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom):
            yield from ((where, *target, None) for target in ours_in(node).values())
        elif isinstance(node, ast.Call):
            function = node.func
            attribute = ""
            if isinstance(function, ast.Attribute):
                function, attribute = function.value, function.attr
            if isinstance(function, ast.Name) and function.id in bound:
                target = bound[function.id]
                yield where, *((".".join(target), attribute) if attribute else target), node


def scoped(node: ast.AST, outer: Bound) -> Iterator[tuple[ast.AST, Bound]]:
    """Every node, with the names that stand for ours where it is: a local may hide an import."""
    inside = list(own_nodes(node))
    local = {a.arg for a in inside if isinstance(a, ast.arg)}
    local |= {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound = {name: target for name, target in outer.items() if name not in local}
    for each in inside:
        if isinstance(each, ast.ImportFrom):
            bound |= ours_in(each)
    for each in inside:
        if isinstance(each, SCOPES):
            yield from scoped(each, bound)
        else:
            yield each, bound


SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``scope``, down to and including scopes inside it, not what is in those."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, SCOPES):
            yield from own_nodes(child)


def ours_in(node: ast.ImportFrom) -> Bound:
    if not (node.module or "").startswith("sgl_entropy"):
        return {}
    return {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}


def binds(call: ast.Call, definition: Definition) -> str:
    """Why ``call`` cannot be bound to ``definition``; "" if it can."""
    assert definition.parameters is not None
    if any(isinstance(a, ast.Starred) for a in call.args) or any(
        k.arg is None for k in call.keywords
    ):
        return ""
    positional = [p.name for p in definition.parameters if not p.keyword_only]
    keywords = [k.arg for k in call.keywords]
    if len(call.args) > len(positional) and not definition.more_positional:
        return "too many arguments"
    passed = {*positional[: len(call.args)], *keywords}
    unknown = [k for k in keywords if k not in {p.name for p in definition.parameters}]
    if unknown and not definition.more_keywords:
        return f"no parameter {unknown}"
    return ", ".join(p.name for p in definition.parameters if p.required and p.name not in passed)


def test_what_the_patches_call_is_there_and_takes_what_they_pass() -> None:
    tree = SourceTree(OURS, "sgl_entropy")
    wrong, seen = [], 0
    for name, text in patched_sources().items():
        for where, module, function, call in door_calls(name, text):
            if tree.has_module(f"{module}.{function}"):
                continue
            seen += 1
            found = tree.find(module, function)
            if found is None:
                wrong.append(f"{where}: {module} has no {function}")
            elif call is not None and found.parameters is not None and binds(call, found):
                wrong.append(f"{where}: {function}: {binds(call, found)}")
    assert seen > 10, "the patches call nothing of ours: did the scan break?"
    assert wrong == []
