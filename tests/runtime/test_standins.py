"""Stand-ins: only on the CPU engine, only for absent packages, and never silent when called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *, cpu: bool = True, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter, with ``path`` before everything else."""
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1" if cpu else "0"}
    environment["PYTHONPATH"] = os.pathsep.join(str(p) for p in (path, ROOT) if p is not None)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )


INSTALL = """
import sys
from sgl_entropy.runtime.v0_5_6.cpu import standins
standins.PACKAGES = ("absent_package", "json", "half_real")
print(sorted(standins.install()))
"""


def test_an_absent_package_imports_and_says_its_name_when_called() -> None:
    done = run(
        INSTALL
        + """
import absent_package, absent_package.deep.er
from absent_package.ops import kernel, Something
print(repr(kernel))
for call in (kernel, Something.method, absent_package.deep.er.f):
    try:
        call(1)
    except RuntimeError as error:
        print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    first, shown, *errors = done.stdout.splitlines()
    assert "absent_package" in first
    assert "json" not in first
    assert "absent_package.ops.kernel" in shown
    assert len(errors) == 3
    for error in errors:
        assert "package absent_package is not installed" in error


def test_a_real_package_wins(tmp_path: Path) -> None:
    (tmp_path / "half_real").mkdir()
    (tmp_path / "half_real" / "__init__.py").write_text("value = 42\n")
    done = run(
        INSTALL + "import half_real, json; print(half_real.value, json.loads('[1]'))\n"
        "import importlib\n"
        "try:\n    importlib.import_module('half_real.missing')\n"
        "except ModuleNotFoundError: print('still missing')\n",
        path=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['absent_package']", "42 [1]", "still missing"]


def test_nothing_is_installed_without_the_cpu_engine() -> None:
    done = run(
        INSTALL
        + """
try:
    import absent_package
except ModuleNotFoundError:
    print("absent")
""",
        cpu=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "absent"]


def test_installing_twice_adds_one_finder() -> None:
    done = run(
        INSTALL + "n = len(sys.meta_path); print(standins.install(), len(sys.meta_path) - n)"
    )
    assert done.stdout.splitlines()[1] == "() 0", done.stderr


@pytest.mark.parametrize("name", ["__file__", "__spec_does_not_exist__"])
def test_dunder_names_are_not_invented(name: str) -> None:
    """``inspect`` and ``copy`` probe them; a made-up one would mislead."""
    done = run(INSTALL + f"import absent_package; print(hasattr(absent_package.thing, {name!r}))")
    assert done.stdout.splitlines()[1] == "False", done.stderr
