"""Our uses of SGLang: read from the sources, met by the real release, and never by another."""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgl_entropy
from sgl_entropy import patching
from sgl_entropy.apiuse.scan import Part, uses_of
from sgl_entropy.apiuse.sources import Module, SourceTree
from sgl_entropy.apiuse.uses import Use, check_uses, dump_uses, use
from sgl_entropy.patching.state import survey, upstream_contents
from sgl_entropy.patching.verbs import patched_contents
from sgl_entropy.runtime.v0_5_6.contract.generate import generate
from sgl_entropy.runtime.v0_5_6.contract.table import (
    SGLANG,
    USES_FILE,
    check_contract,
    contract,
)

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


@pytest.mark.slow
def test_the_file_of_uses_is_what_the_sources_say() -> None:
    lines = (text.splitlines() for text in (USES_FILE.read_text(), dump_uses(generate())))
    changes = [*difflib.unified_diff(*lines, "uses.json", "the sources", lineterm="", n=0)]
    command = "python -m sgl_entropy.runtime.v0_5_6.contract.generate"
    assert not changes, "\n".join([f"run {command} and read what changes:", *changes])


def test_every_import_from_sglang_is_among_the_uses() -> None:
    """A second reader, which looks at imports alone."""
    known = {(use.module, use.name.split(".")[0]) for use in contract()}
    used = {(path, *name) for path in ROOM.rglob("*.py") for name in imports(path)}
    assert len(used) > 15, "the scan found too little: is the room still there?"
    assert [f"{p.name}: from {m} import {n}" for p, m, n in used if (m, n) not in known] == []


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
        "eagle_worker.EAGLEWorker.draft (used by switching): expected (batch), found (batches): "
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
        "(q, sinks, k, v, layer, forward_batch, save_kv_cache=True): new sinks",
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
        "unexpected keyword argument 'flags'",
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
            other = text.replace(old, new)
            assert other != text, f"{name} no longer has {old!r}"
            path.write_text(other)
    lines = [mismatch.line() for mismatch in check_contract(root)]
    for name, _, _, expected in CHANGES:
        assert any(expected in line for line in lines), f"{name}: {expected!r} not in {lines}"
    changed = (
        *(
            "EAGLEWorker.draft ",
            "sampling_from_probs_torch ",
            "TorchNativeAttnBackend.forward_decode ",
        ),
        *("speculative_accept_threshold_acc ", "register_speculative_algorithm ", "llama_eagle3."),
    )
    assert [line for line in lines if not any(name in line for name in changed)] == []


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
        ("host.hub", "starred", "(a, b=1, *, c, d=2)"),
        ("host.hub", "shown", "(x)"),
        ("host.hub", "renamed", None),
        ("host.classes", "starred", "(a, b=1, *, c, d=2)"),
        ("host.branches", "maybe", "(p)"),
        ("host.branches", "thing", "foreign"),
        ("host.branches", "LIMIT", "value"),
        ("host.classes", "Child", "(size, *, eps=1.0)"),
        ("host.classes", "Child.run", "(x, *rest, **more)"),
        ("host.classes", "Child.width", "value"),
        ("host.classes", "Child.plain", "(y)"),
        ("host.classes", "Child.size", "value"),
        ("host.classes", "Child.flag", "value"),
        ("host.classes", "Base.flag", None),
        ("host.classes", "Wide", "(a, b=1, c=2)"),
        ("host.classes", "Wide.kind", "value"),
        ("host.nowhere", "x", None),
    ],
)
def test_definitions_are_found_through_imports_bases_and_branches(
    mini: Path, module: str, name: str, expected: str | None
) -> None:
    definition = SourceTree(mini, "host").find(module, name)
    assert (definition and definition.describe()) == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (use("calls", "host.hub:starred", "a", "c=", by="t"), None),
        (use("calls", "host.hub:starred", "a", by="t"), "missing a required argument: 'c'"),
        (use("calls", "host.hub:starred", "a", "b", "c", by="t"), "too many positional arguments"),
        (
            use("calls", "host.hub:starred", "a", "c=", "e=", by="t"),
            "unexpected keyword argument 'e'",
        ),
        (use("calls", "host.classes:Child.run", "x", "y", "z=", by="t"), None),
        (use("calls", "host.classes:Child", "size", "eps=", by="t"), None),
        (use("calls", "host.classes:Child", "eps", by="t"), "parameter 1 is size, not eps"),
        (use("calls", "host.classes:Child.flag", by="t"), "found a value, not a function"),
        (use("replaces", "host.hub:starred", "a", "b", "c", "d", by="t"), None),
        (use("calls", "host.hub:starred", "a", "**", by="t"), None),
        (use("calls", "host.hub:starred", "*", "e=", by="t"), "unexpected keyword argument 'e'"),
        (use("replaces", "host.hub:starred", "a", "c", by="t"), "new b, d"),
        (use("replaces", "host.hub:starred", "a", "c", "b", "d", by="t"), "another order"),
        (use("replaces", "host.hub:shown", "x", "y", by="t"), "without y"),
        (use("has", "host.classes:Row.a", by="t"), None),
        (use("has", "host.classes:Row.c", by="t"), "Row has no c"),
        (use("has", "host.branches:gone", by="t"), "host.branches has no gone"),
        (use("has", "host.gone:x", by="t"), "found no module host.gone"),
        (use("has", "host.broken:x", by="t"), "found no valid Python in"),
    ],
    ids=lambda value: value.kind if isinstance(value, Use) else str(value),
)
def test_a_use_fits_or_the_mismatch_says_why(mini: Path, made: Use, expected: str | None) -> None:
    lines = [mismatch.line() for mismatch in check_uses(mini, "host", [made])]
    if expected is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert expected in lines[0]
        assert f"{made.module}.{made.name}" in lines[0]


HOST = {
    "__init__.py": "",
    "state.py": (
        "from dataclasses import dataclass\n"
        "class Pool:\n    def __init__(self):\n        self.size = 1\n"
        "    def take(self, count, *, row=0): ...\n"
        "@dataclass\nclass Request:\n    name: str\n    pool: 'Pool' = None\n"
        "@dataclass\nclass Batch:\n    requests: list[Request]\n    other: int = 0\n"
        "def batch_of(name) -> Batch: ...\n"
    ),
    "layer.py": "class Layer:\n    def forward(self, x): ...\n",
    "worker.py": (
        "from host.state import Batch, Pool\n"
        "class Worker:\n"
        "    def __init__(self, pool: Pool, size=1):\n        self.pool = pool\n"
        "    def step(self, batch: Batch, last=False):\n"
        "        count = len(batch.requests)\n"
        "        return Pool()\n"
    ),
}
OBJECTS = {
    "host.worker:Worker": "worker Stand",
    "host.layer:Layer": "layer",
    "host.state:batch_of": "make",
}
# what we write -> what it uses: kind, name, parameters
READ: dict[str, tuple[str, list[str]]] = {
    "an argument by its position": (
        "from host.state import batch_of\nbatch_of(1)",
        ["calls batch_of(name)"],
    ),
    "what an annotation names, of an element too": (
        "from host.state import Request\n"
        "def f(one: Request, all: list[Request]):\n    return one.name, all[0].pool, 1",
        ["has Request", "has Request.name", "has Request.pool"],
    ),
    "a method of what is told by a constructor, a result or the table, wherever it lies": (
        "from host.state import Batch, Pool\n"
        "def batch_here() -> Batch: ...\n"
        "def f(any):\n    any.kept = Pool()\n"
        "    any.kept.take(1)\n    batch_here().other\n    any.worker.step(2, last=True)",
        [
            "has Batch",
            "has Batch.other",
            "calls Pool()",
            "calls Pool.take(count)",
            "calls Worker.step(batch, last=)",
        ],
    ),
    "a function that is passed to ours, and an object that is called": (
        "def f(make, layer):\n    make('one')\n    layer(2)",
        ["calls Layer.forward(x)", "calls batch_of(name)"],
    ),
    "an attribute that is asked for": (
        "def f(worker):\n    return getattr(worker, 'pool', None), hasattr(worker, 'gone')",
        ["has Worker.pool"],
    ),
    "what a subclass calls, has and overrides": (
        "from host.worker import Worker\n"
        "class Mine(Worker):\n"
        "    def __init__(self, *rest):\n        super().__init__(*rest, size=2)\n"
        "    def step(self, batch, last=False):\n"
        "        return self.pool, super().step(batch)",
        [
            "calls Worker(*, size=)",
            "has Worker.pool",
            "calls Worker.step(batch)",
            "replaces Worker.step(batch, last)",
        ],
    ),
    "a class in the place of another": (
        "class Stand:\n    pool = 1\n    def step(self, batch): ...\n    def own(self): ...",
        ["replaces Worker.step(batch, last)"],
    ),
    "nothing that is ours alone": (
        "class Own:\n    def f(self, worker):\n        worker.mine = self.other\n",
        [],
    ),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def scan(
    tmp_path: Path, ours: str, patched: dict[str, str] | None = None, lines: tuple[int, ...] = ()
) -> list[str]:
    """The uses of a module ``mine.one``, and of ``lines`` of a patched host."""
    host = write(tmp_path / "host", HOST)
    mine = write(tmp_path / "mine", {"__init__.py": "", "one.py": ours})
    parts = [Part(Module("mine.one", ours, mine / "one.py"), "one")]
    for name, text in (patched or {}).items():
        parts.append(Part(Module(name, text, host / "patched.py"), "patch", frozenset(lines)))

    def line(use: Use) -> str:
        return f"{use.kind} {use.name}" + f"({', '.join(use.parameters)})" * (use.kind != "has")

    return [line(each) for each in uses_of(SourceTree(host, "host"), parts, OBJECTS)]


@pytest.mark.parametrize("name", READ)
def test_uses_are_read_from_the_sources(tmp_path: Path, name: str) -> None:
    ours, expected = READ[name]
    assert scan(tmp_path, ours) == expected


def test_an_attribute_that_the_host_lacks_is_told(tmp_path: Path) -> None:
    ours = "from host.state import Batch\ndef f(batch: Batch):\n    return batch.request"
    with pytest.raises(ValueError, match=r"mine\.one:3: Batch has no request"):
        scan(tmp_path, ours)


def test_of_a_patched_module_our_lines_count(tmp_path: Path) -> None:
    lines = HOST["worker.py"].splitlines()
    lines[6:6] = ["        one.met(batch.other, self.pool)"]
    text = "\n".join(["from mine import one", *lines])
    ours = "def met(other, pool): ..."
    assert scan(tmp_path, ours, {"host.worker": text}, (1, 8)) == [
        "has Batch.other",
        "has Worker.pool",
        "replaces Worker.step(batch, last)",
    ]


def test_a_local_name_hides_what_our_lines_import(tmp_path: Path) -> None:
    text = "\n".join(["from mine import pool", *HOST["worker.py"].splitlines()])
    assert scan(tmp_path, "", {"host.worker": text}, (1,)) == []


def test_a_function_that_gets_a_twin_of_ours_is_replaced(tmp_path: Path) -> None:
    text = HOST["state.py"] + "from mine.one import batch_of\n"
    last = len(text.splitlines())
    assert scan(tmp_path, "", {"host.state": text}, (last,)) == ["replaces batch_of(name)"]


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


def binds(call: ast.Call, signature: inspect.Signature) -> str:
    """Why ``call`` cannot be bound to ``signature``; "" if it can."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(
        k.arg is None for k in call.keywords
    ):
        return ""
    try:
        signature.bind(*call.args, **{str(k.arg): k.value for k in call.keywords})
    except TypeError as error:
        return str(error)
    return ""


def test_what_the_patches_call_is_there_and_takes_what_they_pass() -> None:
    tree = SourceTree(OURS, "sgl_entropy")
    wrong, seen = [], 0
    for name, text in patched_sources().items():
        for where, module, function, call in door_calls(name, text):
            if tree.has_module(f"{module}.{function}"):
                continue
            seen += 1
            definition = tree.find(module, function)
            if definition is None:
                wrong.append(f"{where}: {module} has no {function}")
            elif call is not None and definition.signature and binds(call, definition.signature):
                wrong.append(f"{where}: {function}: {binds(call, definition.signature)}")
    assert seen > 10, "the patches call nothing of ours: did the scan break?"
    assert wrong == []
