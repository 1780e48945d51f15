"""What state an install is in: every file's hash against the series and our own record.

The record lies inside the package, in ``.sgl-entropy``: ``state.json`` (which series was
applied, to which files) and ``originals/`` (upstream's bytes of every file it replaced). The
hashes of the files decide; the record serves to tell an older series of ours from local
changes, and to give the originals back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgl_entropy import __version__
from sgl_entropy.patching.engine import reverse_series
from sgl_entropy.patching.errors import PatchError
from sgl_entropy.patching.install import PACKAGE, SglangInstall
from sgl_entropy.patching.manifest import (
    FORMAT,
    STATE_FOLDER,
    Hashes,
    Series,
    parse_files,
    read_file,
    sha256,
)

FileState = Literal["upstream", "patched", "patched (other series)", "changed", "missing"]
State = Literal["not applied", "applied", "applied (other series)", "mixed/changed"]

STATE_FILE = f"{STATE_FOLDER}/state.json"


@dataclass(frozen=True)
class InstallRecord:
    """What ``state.json`` says: the series that was applied and its files' hashes."""

    series: str
    files: Mapping[str, Hashes]


@dataclass(frozen=True)
class Survey:
    """The state of an install.

    Attributes:
        state: of the whole.
        files: of every file that the series, or the series on record, touches.
        hashes: upstream's and ours, for the same files.
        record: what ``state.json`` says; None without a usable one.
        notes: oddities that a person should know of.
    """

    state: State
    files: Mapping[str, FileState]
    hashes: Mapping[str, Hashes]
    record: InstallRecord | None
    notes: tuple[str, ...]

    @property
    def foreign(self) -> dict[str, str]:
        """The files that are neither upstream's nor ours."""
        return {n: state for n, state in self.files.items() if state in ("changed", "missing")}


def survey(install: SglangInstall, series: Series) -> Survey:
    """Hash every file that matters. Reads only.

    Raises:
        OSError: a file cannot be read.
    """
    record, notes = _read_record(install)
    other = record if record is not None and record.series != series.hash else None
    hashes = {**(other.files if other else {}), **series.files}
    digests = {name: _digest(install, name) for name in hashes}
    files: dict[str, FileState] = {}
    for name, digest in sorted(digests.items()):
        if name in series.files and digest == series.files[name].patched:
            files[name] = "patched"
        elif digest == hashes[name].upstream:
            files[name] = "upstream"
        elif other and name in other.files and digest == other.files[name].patched:
            files[name] = "patched (other series)"
        else:
            files[name] = "missing" if digest is None else "changed"
    state: State = "mixed/changed"
    if all(file == "upstream" for file in files.values()):
        state = "not applied"
    elif other and _whole(other.files, series.files, digests):
        state = "applied (other series)"
    elif _whole(series.files, other.files if other else {}, digests):
        state = "applied"
    return Survey(state, files, hashes, record, notes)


def _whole(
    table: Mapping[str, Hashes], rest: Mapping[str, Hashes], digests: Mapping[str, str | None]
) -> bool:
    """Is every file of ``table`` patched, and every other one of ``rest`` upstream's?"""
    return all(digests[name] == hashes.patched for name, hashes in table.items()) and all(
        digests[name] == hashes.upstream for name, hashes in rest.items() if name not in table
    )


def _digest(install: SglangInstall, name: str) -> str | None:
    path = install.path(name)
    return "not a file" if path.is_dir() else sha256(read_file(path))


def _read_record(install: SglangInstall) -> tuple[InstallRecord | None, tuple[str, ...]]:
    path = install.path(STATE_FILE)
    data = read_file(path)
    if data is None:
        if path.parent.exists():
            return None, (f"{STATE_FILE} is missing although its folder exists",)
        return None, ()
    try:
        raw = json.loads(data)
        if raw["format"] != FORMAT:
            return None, (f"{STATE_FILE} has the unknown format {raw['format']!r}; not used",)
        if raw["sglang"] != install.version:
            left = f"{STATE_FOLDER} is left over from SGLang {raw['sglang']}; not used"
            return None, (left,)
        return InstallRecord(str(raw["series"]), parse_files(raw["files"], str(path))), ()
    except (ValueError, KeyError, TypeError, AttributeError, PatchError) as error:
        return None, (f"{STATE_FILE} is damaged and not used ({error!r})",)


def original_name(name: str) -> str:
    """Where the stored original of ``name`` lies, as a name inside the package."""
    return f"{STATE_FOLDER}/originals/{name.removeprefix(PACKAGE + '/')}.orig"


def state_files(series: Series, upstream: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The content of the state folder after applying ``series`` over ``upstream``."""
    record = {
        "format": FORMAT,
        "sgl_entropy": __version__,
        "sglang": series.sglang,
        "series": series.hash,
        "files": {name: hashes._asdict() for name, hashes in series.files.items()},
    }
    originals = {original_name(n): data for n in series.files if (data := upstream[n]) is not None}
    return {STATE_FILE: (json.dumps(record, indent=1) + "\n").encode(), **originals}


def damaged_originals(install: SglangInstall, files: Mapping[str, Hashes]) -> dict[str, str]:
    """The stored originals that are not, or no longer, upstream's bytes: name -> what is wrong."""
    wrong = {}
    for name, hashes in files.items():
        digest = _digest(install, original_name(name))
        if digest != hashes.upstream:
            wrong[original_name(name)] = "missing" if digest is None else "changed"
    return wrong


def present_state_files(install: SglangInstall) -> list[str]:
    """The names of all that is in the state folder now."""
    folder = install.path(STATE_FOLDER)
    return [f"{PACKAGE}/{p.relative_to(install.root)}" for p in _leaves(folder)]


def _leaves(folder: Path) -> Iterable[Path]:
    if folder.is_dir() and not folder.is_symlink():
        for entry in sorted(folder.iterdir()):
            yield from _leaves(entry)
    elif folder.is_symlink() or folder.exists():
        yield folder


def upstream_contents(
    install: SglangInstall, series: Series, now: Survey
) -> dict[str, bytes | None]:
    """Upstream's bytes of every surveyed file: in place, from the originals, or by reversal.

    Raises:
        PatchError: some cannot be restored; lists them.
    """
    contents: dict[str, bytes | None] = {}
    lost: dict[str, str] = {}
    for name, hashes in now.hashes.items():
        for candidate in (None, read_file(install.path(name)), _original(install, name)):
            if sha256(candidate) == hashes.upstream:
                contents[name] = candidate
                break
        else:
            lost[name] = now.files[name]
    if not lost:
        return contents
    try:
        ours = {name: read_file(install.path(name)) for name in series.files}
        reversed_ = reverse_series(series.patches, ours)
    except PatchError:
        reversed_ = {}
    for name in list(lost):
        if sha256(reversed_.get(name)) == now.hashes[name].upstream:
            contents[name] = reversed_[name]
            del lost[name]
    if lost:
        raise PatchError(
            f"{install.root}: the stored originals of these files are lost, and the patches alone "
            "do not give them back. Reinstall SGLang (pip install --force-reinstall --no-deps "
            f"sglang=={install.version})",
            lost,
        )
    return contents


def _original(install: SglangInstall, name: str) -> bytes | None:
    path = install.path(original_name(name))
    return None if path.is_dir() else read_file(path)
