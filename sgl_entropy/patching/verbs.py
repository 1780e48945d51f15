"""Apply, revert, look and check: the four things one can do with a series and an install."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from sgl_entropy.patching.commit import commit, leftovers, recover
from sgl_entropy.patching.engine import run_series
from sgl_entropy.patching.errors import PatchError
from sgl_entropy.patching.fsops import READ_ONLY, lock
from sgl_entropy.patching.install import PACKAGE, SglangInstall
from sgl_entropy.patching.manifest import STATE_FOLDER, Series, read_file, sha256
from sgl_entropy.patching.state import (
    FileState,
    State,
    Survey,
    damaged_originals,
    present_state_files,
    state_files,
    survey,
    upstream_contents,
)

Verb = Literal["apply", "revert", "status", "verify"]


@dataclass(frozen=True)
class Report:
    """The outcome of one verb.

    Attributes:
        verb: which.
        root: the package folder.
        sglang: its version.
        series: hash of the shipped series.
        state: of the install, after the verb.
        files: state of every file that the series touches.
        changed: did this call change the install's patch state?
        ok: False only for a verify that found something wrong.
        notes: what else a person should know, one line each.
    """

    verb: Verb
    root: str
    sglang: str
    series: str
    state: State
    files: Mapping[str, FileState]
    changed: bool
    ok: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: the attributes, ``files`` as an object name -> state."""
        return {**asdict(self), "files": dict(self.files), "notes": list(self.notes)}


def apply(install: SglangInstall, series: Series) -> Report:
    """Bring every file to its patched state, or change nothing. Idempotent.

    An older series of ours is replaced in the same step, by way of the stored originals.

    Raises:
        PatchError: another SGLang version, files that are neither upstream's nor ours (all of
            them listed), a series that does not fit, or a write that failed.
    """
    with _session(install, series) as (found, notes, locked):
        if found.state == "applied":
            return _report("apply", install, series, found, notes)
        if found.foreign:
            raise PatchError(
                f"{install.root}: these files are neither SGLang {series.sglang}'s nor patched by "
                "us, so nothing was written. Put them right, or reinstall SGLang (pip install "
                f"--force-reinstall --no-deps sglang=={series.sglang})",
                found.foreign,
            )
        if found.state == "mixed/changed":
            notes.append("found some files patched and some not (a reinstall?); completed them")
        upstream = upstream_contents(install, series, found)
        wanted = {**upstream, **patched_contents(series, upstream)}
        after = _write(install, series, {**wanted, **state_files(series, upstream)}, notes, locked)
    if after.state != "applied":
        raise PatchError(f"{install.root}: changed by someone else meanwhile", after.foreign)
    return _report("apply", install, series, after, notes, changed=True)


def revert(install: SglangInstall, series: Series) -> Report:
    """Bring every file back to upstream's bytes, or change nothing. Idempotent.

    Raises:
        PatchError: files changed locally since (all of them listed), lost originals, or a write
            that failed.
    """
    with _session(install, series) as (found, notes, locked):
        if found.state == "not applied" and not install.path(STATE_FOLDER).exists():
            return _report("revert", install, series, found, notes)
        if found.foreign:
            raise PatchError(
                f"{install.root}: these files were changed since the patches were applied, so "
                "nothing was written. Undo those changes, or reinstall SGLang (pip install "
                f"--force-reinstall --no-deps sglang=={series.sglang})",
                found.foreign,
            )
        wanted = upstream_contents(install, series, found)
        after = _write(install, series, wanted, notes, locked)
    if after.state != "not applied":
        raise PatchError(f"{install.root}: changed by someone else meanwhile", after.foreign)
    return _report("revert", install, series, after, notes, changed=True)


def status(install: SglangInstall, series: Series) -> Report:
    """Which state the install and every touched file is in. Writes only to settle a crash.

    Raises:
        PatchError: a crashed run left a journal that cannot be settled, or a file is unreadable.
    """
    with _session(install, series) as (found, notes, _):
        return _report("status", install, series, found, notes)


def verify(install: SglangInstall, series: Series) -> Report:
    """Like :func:`status`; ``ok`` only if every file is patched and every stored original right.

    Raises:
        PatchError: as for :func:`status`.
    """
    with _session(install, series) as (found, notes, _):
        damaged: dict[str, str] = {}
        if found.state == "applied" and found.record is None:
            notes.append(f"{STATE_FOLDER} holds no record; revert will reverse the patches instead")
        elif found.state == "applied":
            damaged = damaged_originals(install, series.files)
            notes += [f"stored original {name}: {state}" for name, state in damaged.items()]
        fine = found.state == "applied" and not damaged
        return _report("verify", install, series, found, notes, ok=fine)


def patched_contents(
    series: Series, upstream: Mapping[str, bytes | None]
) -> dict[str, bytes | None]:
    """The series' files after patching; checked against its manifest, nothing is written.

    Raises:
        PatchError: a patch does not fit, or gives other bytes than the manifest says.
    """
    result = run_series(series.patches, {name: upstream[name] for name in series.files})
    wrong = {
        name: f"expected sha256 {hashes.patched}, got {sha256(result[name])}"
        for name, hashes in series.files.items()
        if sha256(result[name]) != hashes.patched
    }
    if wrong:
        raise PatchError(
            "the patches give other files than their manifest says, so nothing was written. "
            "Reinstall sgl-entropy, or regenerate the manifest (sgl-entropy patch record)",
            wrong,
        )
    return result


def _write(
    install: SglangInstall,
    series: Series,
    wanted: Mapping[str, bytes | None],
    notes: list[str],
    locked: OSError | None,
) -> Survey:
    """Commit ``wanted`` plus what follows from it; state files not in it are deleted."""
    changes = {name: data for name, data in wanted.items() if read_file(install.path(name)) != data}
    for name in present_state_files(install):
        if name not in wanted:
            changes[name] = None
    for name in [name for name, data in changes.items() if data is None]:
        changes |= dict.fromkeys(_bytecode(install, name))
    with _told(install):
        if locked is not None:
            raise locked
        notes += commit(install.root, changes)
    try:
        return survey(install, series)
    except OSError as error:
        raise PatchError(f"{install.root}: written, but cannot be read back: {error}") from error


def _bytecode(install: SglangInstall, name: str) -> list[str]:
    """The cached bytecode of a file that goes away, or its folder could never go."""
    path = PurePosixPath(name)
    cache = install.path(str(path.parent)) / "__pycache__"
    if path.suffix != ".py" or not cache.is_dir():
        return []
    found = (entry.name for entry in cache.iterdir() if entry.name.startswith(f"{path.stem}."))
    return [str(path.parent / "__pycache__" / entry) for entry in found if entry.endswith(".pyc")]


@contextmanager
def _session(
    install: SglangInstall, series: Series
) -> Iterator[tuple[Survey, list[str], OSError | None]]:
    """Lock, settle what a crash left, look around."""
    if series.sglang != install.version:
        raise PatchError(
            f"{install.root} is SGLang {install.version}; these patches are for {series.sglang}. "
            f'Install that one: pip install "{PACKAGE}=={series.sglang}"'
        )
    with _told(install), lock(install.root) as unlocked:
        notes: list[str] = []
        if unlocked is None:
            notes += recover(install.root)
        elif any(".journal." in f"{path.name}." for path in leftovers(install.root)):
            raise PatchError(
                f"{install.root.parent} has the journal of a run that was cut short, and is "
                f"read-only ({unlocked.strerror}), so that it cannot be settled. Make it writable."
            )
        try:
            found = survey(install, series)
            notes += found.notes
            yield found, notes, unlocked
        except PatchError as error:
            if notes:
                raise PatchError(f"{error}\nBefore that: {'; '.join(notes)}") from error
            raise


@contextmanager
def _told(install: SglangInstall) -> Iterator[None]:
    """Say of an OSError what it means here. Whoever raises it has left nothing half-done."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in READ_ONLY:
            hint = f" Run this as the owner of {install.root.parent}, where it is writable."
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f" Free some space there (a copy of {install.root} may be needed)."
        where = f": {error.filename}" if error.filename else ""
        raise PatchError(
            f"{install.root}: {error.strerror or error}{where}. Nothing was changed.{hint}"
        ) from error


def _report(
    verb: Verb,
    install: SglangInstall,
    series: Series,
    found: Survey,
    notes: list[str],
    *,
    changed: bool = False,
    ok: bool = True,
) -> Report:
    root = str(install.root)
    return Report(
        verb,
        root,
        install.version,
        series.hash,
        found.state,
        found.files,
        changed,
        ok,
        tuple(notes),
    )
