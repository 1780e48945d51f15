"""A patch series and its manifest: which files it touches, their hashes before and after.

A series is a folder ``v<SGLang version>`` with ``NNNN-name.patch`` files, applied in the order
of their names, and ``manifest.json``::

    {"format": 1, "sglang": "0.5.6.post2", "series": SHA256 OF THE PATCHES' BYTES IN ORDER,
     "patches": {"0001-name.patch": ["sglang/srt/a.py", ...], ...},
     "files": {"sglang/srt/a.py": {"upstream": SHA256, "patched": SHA256}, ...}}

``upstream`` is null for a file that the series creates, ``patched`` for one that it deletes.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sgl_entropy.patching.engine import PatchFile, check_name, reverse_series, run_series, touched
from sgl_entropy.patching.errors import PatchError
from sgl_entropy.patching.install import SglangInstall

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

FORMAT = 1
MANIFEST = "manifest.json"
STATE_FOLDER = "sglang/.sgl-entropy"
_RECORD = "Regenerate it: sgl-entropy patch record --upstream DIR"


class Hashes(NamedTuple):
    """SHA-256 of one file before and after the series; None where there is no such file."""

    upstream: str | None
    patched: str | None


@dataclass(frozen=True)
class Series:
    """A patch series for one SGLang version.

    Attributes:
        sglang: the version that it is for.
        hash: SHA-256 over the patches' bytes, in order.
        patches: in order of application.
        files: ``sglang/...`` -> hashes before and after.
    """

    sglang: str
    hash: str
    patches: tuple[PatchFile, ...]
    files: Mapping[str, Hashes]


def sha256(data: bytes | None) -> str | None:
    """Hex digest; None of None."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def supported_versions() -> list[str]:
    """The SGLang versions that a series is shipped for."""
    folders = importlib.resources.files("sgl_entropy.patching.series").iterdir()
    return sorted(f.name[1:] for f in folders if f.is_dir() and f.name.startswith("v"))


def series_folder(version: str | None = None) -> Traversable:
    """The shipped folder of the series for ``version``; None: the only one there is.

    Raises:
        PatchError: no series for this version.
    """
    supported = supported_versions()
    if version is None and len(supported) == 1:
        version = supported[0]
    if version not in supported:
        raise PatchError(
            f"SGLang {version} is not supported: this sgl-entropy has patches for "
            f"{', '.join(supported) or 'no version at all'}. Install one of these "
            '(pip install "sglang==VERSION").'
        )
    return importlib.resources.files("sgl_entropy.patching.series") / f"v{version}"


def load_series(version: str | None = None) -> Series:
    """The shipped series for ``version``; None: the only one there is.

    Raises:
        PatchError: no series for this version, or a damaged one.
    """
    return read_series(series_folder(version))


def read_patches(folder: Traversable) -> tuple[PatchFile, ...]:
    """The patches in ``folder``, in order.

    Raises:
        PatchError: there is none.
    """
    files = sorted((e for e in folder.iterdir() if e.name.endswith(".patch")), key=lambda e: e.name)
    if not files:
        raise PatchError(f"{folder}: no *.patch file")
    return tuple(PatchFile(entry.name, entry.read_bytes()) for entry in files)


def read_series(folder: Traversable) -> Series:
    """The series in ``folder``, its manifest checked against its patches.

    Raises:
        PatchError: no patch, no manifest, or they do not belong together.
    """
    patches = read_patches(folder)
    digest = series_hash(patches)
    where = f"{folder / MANIFEST}"
    try:
        raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, noted, form = raw["sglang"], raw["series"], raw["format"]
        files = parse_files(raw["files"], where)
    except FileNotFoundError:
        raise PatchError(f"{where} is missing. {_RECORD}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PatchError(f"{where} is damaged ({error!r}). {_RECORD}") from error
    if form != FORMAT:
        raise PatchError(f"{where} has format {form!r}, expected {FORMAT}. {_RECORD}")
    if noted != digest:
        raise PatchError(f"{where} was made for other patches than those beside it. {_RECORD}")
    return Series(version, digest, patches, files)


def series_hash(patches: tuple[PatchFile, ...]) -> str:
    """SHA-256 over the patches' bytes, in order."""
    return hashlib.sha256(b"".join(patch.data for patch in patches)).hexdigest()


def parse_files(raw: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Hashes]:
    """The ``files`` table of a manifest or of a state file.

    Raises:
        PatchError: a name leads out of the package.
        KeyError, TypeError, AttributeError: not such a table.
    """
    return {
        check_name(name, where): Hashes(entry["upstream"], entry["patched"])
        for name, entry in raw.items()
    }


def record(folder: Path, upstream: SglangInstall) -> dict[str, Any]:
    """The manifest of the patches in ``folder`` over the pristine ``upstream``; writes nothing.

    Also proves that the series can be undone from the patches alone, as far as it only changes
    and creates files.

    Raises:
        PatchError: ``upstream`` carries our state folder or lacks a touched file, or a patch is
            malformed or does not fit exactly.
    """
    if upstream.path(STATE_FOLDER).exists():
        raise PatchError(f"{upstream.root} is patched, not pristine: sgl-entropy patch revert")
    patches = read_patches(folder)
    by_patch = {patch.name: touched(patch) for patch in patches}
    names = sorted({name for files in by_patch.values() for name in files})
    before = {name: read_file(upstream.path(name)) for name in names}
    after = run_series(patches, before)
    if None not in after.values() and reverse_series(patches, after) != before:
        raise PatchError(f"{folder}: the series applies, but reversing it does not give upstream")
    return {
        "format": FORMAT,
        "sglang": upstream.version,
        "series": series_hash(patches),
        "patches": by_patch,
        "files": {
            name: {"upstream": sha256(before[name]), "patched": sha256(after[name])}
            for name in names
        },
    }


def read_file(path: Path) -> bytes | None:
    """The bytes of ``path``; None where there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
