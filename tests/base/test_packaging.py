"""The wheel: everything that an install needs is in it, and works without the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "sgl_entropy": ROOT / "sgl_entropy",
    "sgl_entropy_bench": ROOT / "bench/sgl_entropy_bench",
}
VERSION = "0.5.6.post2"


def package_folders() -> set[str]:
    """Every folder with Python files in it, as a dotted name."""
    found = set()
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            found.add(".".join((package, *path.parent.relative_to(folder).parts)))
    return found


def test_every_package_folder_is_listed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(setuptools["packages"])
    assert package_folders() | {"sgl_entropy.patching.series"} == listed, (
        "pyproject.toml, [tool.setuptools] packages"
    )
    for name in listed:
        parent, _, _ = name.rpartition(".")
        assert not parent or parent in listed, f"{name} is listed without {parent}"


def test_types_are_checked_for_the_oldest_python_that_it_installs_on() -> None:
    held = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert held["project"]["requires-python"] == f">={held['tool']['mypy']['python_version']}"
    assert held["tool"]["ruff"]["target-version"] == "py310"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from links to this checkout's folders."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "sgl_entropy", "bench", "patches"):
        (source / name).symlink_to(ROOT / name)
    # Only the top folder is real: what the build writes there stays out of the checkout.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, cwd=source, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package}/{path.relative_to(folder)}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    series = ROOT / "patches" / f"v{VERSION}"
    patches = {f"sgl_entropy/patching/series/v{VERSION}/{p.name}" for p in series.iterdir()}
    assert any(name.endswith(".patch") for name in patches)
    assert f"sgl_entropy/patching/series/v{VERSION}/manifest.json" in patches
    assert {"sgl_entropy/py.typed", "sgl_entropy_bench/py.typed"} <= names
    assert (expected | patches) - names == set(), "missing from the wheel"
    tops = {name.split("/", 1)[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(SOURCES)


def test_an_installed_wheel_finds_its_series(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*pip, *options, str(wheel)], check=True, timeout=120)
    package = tmp_path / "copy" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('raise RuntimeError("SGLang was imported")\n')
    (package / "version.py").write_text(f'__version__ = "{VERSION}"\n')
    # The target folder comes first, ahead of the environment's editable install of this checkout.
    code = (
        "import sys, sgl_entropy; from sgl_entropy.cli import main; "
        "print(sgl_entropy.__file__, file=sys.stderr); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "patch", "status", "--sglang", str(package), "--json", "-"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        timeout=120,
    )
    assert str(site) in done.stderr.splitlines()[0]
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    manifest = json.loads((ROOT / "patches" / f"v{VERSION}" / "manifest.json").read_text())
    assert status["series"] == manifest["series"]
    assert set(status["files"]) == set(manifest["files"])
    assert status["state"] == "mixed/changed"  # this copy has next to no files
