"""A miniature SGLang and a series of two patches for it."""

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sgl_entropy.patching import SglangInstall, find_sglang, read_series
from sgl_entropy.patching import manifest as manifest_module
from sgl_entropy.patching.manifest import Series

VERSION = "0.5.6.post2"
NUMBERS = "".join(f"line {i}\n" for i in range(40))

UPSTREAM = {
    "sglang/__init__.py": 'raise RuntimeError("SGLang was imported")\n',
    "sglang/version.py": f'__version__ = "{VERSION}"\n',
    "sglang/srt/__init__.py": "",
    "sglang/srt/server_args.py": "import os\n" + NUMBERS,
    "sglang/srt/layers/attention.py": NUMBERS + "end = True\n",
    "sglang/srt/untouched.py": "x = 1\n",
}
FIRST = {
    "sglang/srt/server_args.py": "import os\nimport hook\n" + NUMBERS,
    "sglang/srt/hooks/hook.py": "def call():\n    return 1\n",
}
SECOND = {
    "sglang/srt/server_args.py": "import os\nimport hook\n" + NUMBERS.replace("line 30", "LINE 30"),
    "sglang/srt/hooks/hook.py": "def call():\n    return 2\n",
    "sglang/srt/layers/attention.py": NUMBERS.replace("line 3\n", "") + "end = False\n",
}


def diff(before: dict[str, str], after: dict[str, str]) -> str:
    """A unified diff as ``git diff`` writes it, without git's own headers."""
    out = []
    for name, text in after.items():
        old = before.get(name)
        out += difflib.unified_diff(
            (old or "").splitlines(keepends=True),
            text.splitlines(keepends=True),
            "/dev/null" if old is None else f"a/{name}",
            f"b/{name}",
        )
    return "".join(out)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file (its bytes) and every folder (None) below ``folder``."""
    return {
        str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
        for p in folder.rglob("*")
    }


@dataclass
class Mini:
    """``dist`` is a folder like site-packages; ``patches`` the folder of the series."""

    dist: Path
    patches: Path

    @property
    def install(self) -> SglangInstall:
        return find_sglang(self.dist)

    @property
    def series(self) -> Series:
        return read_series(self.patches)

    def path(self, name: str) -> Path:
        return self.dist / name

    def write_series(self, *patches: str, folder: str = "series") -> Series:
        self.patches = self.dist.parent / folder
        shutil.rmtree(self.patches, ignore_errors=True)
        self.patches.mkdir()
        for number, text in enumerate(patches, 1):
            (self.patches / f"{number:04d}-step.patch").write_text(text)
        content = manifest_module.record(self.patches, self.install)
        (self.patches / "manifest.json").write_text(json.dumps(content))
        return self.series


def make_dist(dist: Path) -> None:
    for name, text in UPSTREAM.items():
        path = dist / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cache = dist / "sglang/srt/__pycache__"
    cache.mkdir()
    (cache / "server_args.cpython-311.pyc").write_bytes(b"bytecode")
    info = dist / f"sglang-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: sglang\nVersion: {VERSION}\n")


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """Like ``tmp_path``, in memory where there is such a place: the crash loops need it."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="sgl-entropy-test-") as folder:
        yield Path(folder)


@pytest.fixture
def mini(memory_path: Path) -> Mini:
    dist = memory_path / "site packages"
    make_dist(dist)
    made = Mini(dist, memory_path)
    made.write_series(diff(UPSTREAM, FIRST), diff({**UPSTREAM, **FIRST}, SECOND))
    return made
