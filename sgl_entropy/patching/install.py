"""Find an SGLang on this machine, and its version, without importing it (or torch)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.patching.errors import PatchError

MIN_PYTHON = (3, 10)
PACKAGE = "sglang"


@dataclass(frozen=True)
class SglangInstall:
    """One SGLang package folder.

    Attributes:
        root: the package folder itself, with symbolic links resolved.
        version: as its ``version.py`` (or else its dist-info) says.
    """

    root: Path
    version: str

    def path(self, name: str) -> Path:
        """Where the file that patches call ``sglang/...`` lies."""
        return self.root / name.removeprefix(PACKAGE + "/")


def check_python(version: Sequence[int] = tuple(sys.version_info[:2])) -> None:
    """Refuse interpreters that the supported SGLang releases do not run on.

    Raises:
        PatchError: older than 3.10.
    """
    if tuple(version[:2]) < MIN_PYTHON:
        raise PatchError(
            f"Python {version[0]}.{version[1]} is not supported; SGLang and sgl-entropy need "
            f"{MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer. Run this command with SGLang's own Python."
        )


def find_sglang(folder: str | Path | None = None) -> SglangInstall:
    """The SGLang in ``folder``, or else the one that this Python would import.

    Args:
        folder: the package folder, or a folder that has it as ``sglang`` (site-packages, an
            unpacked wheel) or as ``python/sglang`` (a checkout).

    Raises:
        PatchError: no SGLang there, or no version to be read, or two that disagree.
    """
    root = (_installed() if folder is None else _inside(Path(folder))).resolve()
    return SglangInstall(root, _version(root))


def _installed() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # of a top-level name: looks, does not import
    if spec is None or spec.origin is None:
        raise PatchError(
            f"no SGLang found: {sys.executable} has no package named {PACKAGE}. Install it, run "
            "this command with the Python that has it, or name its folder with --sglang DIR."
        )
    return Path(spec.origin).parent


def _inside(folder: Path) -> Path:
    if not folder.is_dir():
        raise PatchError(f"--sglang {folder}: no such folder")
    for root in (folder / PACKAGE, folder / "python" / PACKAGE, folder):
        if (root / "__init__.py").is_file():
            return root
    raise PatchError(
        f"no SGLang found in {folder}: expected the package folder ({PACKAGE}/, with its "
        "__init__.py) or a folder that contains it"
    )


def _version(root: Path) -> str:
    """The version in ``version.py``; a dist-info beside it must not contradict it."""
    source = root / "version.py"
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    beside = {
        dist.version
        for dist in importlib.metadata.distributions(name=PACKAGE, path=[str(root.parent)])
    }
    versions = beside | ({match.group(1)} if match else set())
    if not versions:
        raise PatchError(
            f"{root}: neither {source.name} nor a dist-info folder beside it gives a version, so "
            "it is not known whether the patches fit"
        )
    if len(versions) > 1:
        raise PatchError(
            f"{root}: version.py says {match.group(1) if match else 'nothing'}, the dist-info "
            f"beside it {', '.join(sorted(beside))}: a broken or half-replaced install. "
            "Reinstall SGLang."
        )
    return versions.pop()
