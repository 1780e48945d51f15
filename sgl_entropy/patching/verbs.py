"""The four verbs: apply a series to an install, revert it, show its state, verify it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from sgl_entropy.patching import journal
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
class PatchReport:
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


def apply(install: SglangInstall, series: Series) -> PatchReport:
    """Bring every file to its patched state, or change nothing. Idempotent.

    An older series of ours is replaced in the same step, by way of the stored originals.

    Raises:
        PatchError: another SGLang version, files that are neither upstream's nor ours (all of
            them listed), a series that does not fit, or a write that failed.
    """
    with _session(install, series) as session:
        before = session.before
        if before.state == "applied":
            return session.report("apply")
        if before.foreign:
            raise PatchError(
                f"{install.root}: these files are neither SGLang {series.sglang}'s nor patched by "
                "us, so nothing was written. Put them right, or reinstall SGLang (pip install "
                f"--force-reinstall --no-deps sglang=={series.sglang})",
                before.foreign,
            )
        if before.state == "mixed/changed":
            session.notes.append(
                "some files were patched and some not (a reinstall?); completed them"
            )
        upstream = upstream_contents(install, series, before)
        patched = patched_contents(series, upstream)
        session.write({**upstream, **patched, **state_files(series, upstream)})
        return session.report("apply", expected="applied")


def revert(install: SglangInstall, series: Series) -> PatchReport:
    """Bring every file back to upstream's bytes, or change nothing. Idempotent.

    Raises:
        PatchError: files changed locally since (all of them listed), lost originals, or a write
            that failed.
    """
    with _session(install, series) as session:
        before = session.before
        if before.state == "not applied" and not install.path(STATE_FOLDER).exists():
            return session.report("revert")
        if before.foreign:
            raise PatchError(
                f"{install.root}: these files were changed since the patches were applied, so "
                "nothing was written. Undo those changes, or reinstall SGLang (pip install "
                f"--force-reinstall --no-deps sglang=={series.sglang})",
                before.foreign,
            )
        session.write(upstream_contents(install, series, before))
        return session.report("revert", expected="not applied")


def status(install: SglangInstall, series: Series) -> PatchReport:
    """Which state the install and every touched file is in. Writes only to settle a crash.

    Raises:
        PatchError: a crashed run left a journal that cannot be settled, or a file is unreadable.
    """
    with _session(install, series) as session:
        return session.report("status")


def verify(install: SglangInstall, series: Series) -> PatchReport:
    """Like :func:`status`; ``ok`` only if every file is patched and every stored original right.

    Raises:
        PatchError: as for :func:`status`.
    """
    with _session(install, series) as session:
        applied = session.before.state == "applied"
        damaged: dict[str, str] = {}
        if applied and session.before.record is None:
            session.notes.append(
                f"{STATE_FOLDER} holds no record; revert will reverse the patches instead"
            )
        elif applied:
            damaged = damaged_originals(install, series.files)
            session.notes += [f"stored original {name}: {what}" for name, what in damaged.items()]
        return session.report("verify", ok=applied and not damaged)


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


@dataclass
class _Session:
    """One verb at work on an install that it has locked.

    Attributes:
        before: the install as it was.
        notes: what a person should know, one line each; grows.
        read_only: why nothing can be written beside the package; None where it can.
        after: the install once something was written.
    """

    install: SglangInstall
    series: Series
    before: Survey
    notes: list[str]
    read_only: OSError | None
    after: Survey | None = None

    def write(self, wanted: Mapping[str, bytes | None]) -> None:
        """Commit ``wanted`` plus what follows from it; state files not in it are deleted."""
        root, path = self.install.root, self.install.path
        changes = {name: data for name, data in wanted.items() if read_file(path(name)) != data}
        changes |= {name: None for name in present_state_files(self.install) if name not in wanted}
        for name in [name for name, data in changes.items() if data is None]:
            changes |= dict.fromkeys(_bytecode(self.install, name))
        with _explained(self.install):
            if self.read_only is not None:
                raise self.read_only
            journal.commit(root, changes)
        try:
            self.after = survey(self.install, self.series)
        except OSError as error:
            raise PatchError(f"{root}: written, but cannot be read back: {error}") from error

    def report(self, verb: Verb, *, expected: State | None = None, ok: bool = True) -> PatchReport:
        """What to tell; ``expected`` is the state that a write must have led to."""
        now = self.after or self.before
        root = str(self.install.root)
        if expected is not None and now.state != expected:
            raise PatchError(f"{root}: changed by someone else meanwhile", now.foreign)
        return PatchReport(
            verb=verb,
            root=root,
            sglang=self.install.version,
            series=self.series.hash,
            state=now.state,
            files=now.files,
            changed=self.after is not None,
            ok=ok,
            notes=tuple(self.notes),
        )


def _bytecode(install: SglangInstall, name: str) -> list[str]:
    """The cached bytecode of a deleted file: with it left, the file's folder would stay."""
    path = PurePosixPath(name)
    cache = install.path(str(path.parent)) / "__pycache__"
    if path.suffix != ".py" or not cache.is_dir():
        return []
    cached = (entry.name for entry in cache.iterdir() if entry.name.startswith(f"{path.stem}."))
    return [str(path.parent / "__pycache__" / entry) for entry in cached if entry.endswith(".pyc")]


@contextmanager
def _session(install: SglangInstall, series: Series) -> Iterator[_Session]:
    """Lock, settle what a crash left, look around."""
    if series.sglang != install.version:
        raise PatchError(
            f"{install.root} is SGLang {install.version}; these patches are for {series.sglang}. "
            f'Install that one: pip install "{PACKAGE}=={series.sglang}"'
        )
    with _explained(install), lock(install.root) as read_only:
        notes: list[str] = []
        if read_only is None:
            notes += journal.recover(install.root)
        elif journal.journals(install.root):
            raise PatchError(
                f"{install.root.parent} has the journal of a run that was cut short, and is "
                f"read-only ({read_only.strerror}), so the run cannot be undone. Make it writable."
            )
        try:
            before = survey(install, series)
            notes += before.notes
            yield _Session(install, series, before, notes, read_only)
        except PatchError as error:
            if notes:
                raise PatchError(f"{error}\nBefore that: {'; '.join(notes)}") from error
            raise


@contextmanager
def _explained(install: SglangInstall) -> Iterator[None]:
    """Turn an OSError into advice. Whatever raises one here has left nothing half-done."""
    try:
        yield
    except OSError as error:
        hint = ""
        if error.errno in READ_ONLY:
            hint = f" Run this as the owner of {install.root.parent}, where it is writable."
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = " Free some space there."
        where = f": {error.filename}" if error.filename else ""
        raise PatchError(
            f"{install.root}: {error.strerror or error}{where}. Nothing was changed.{hint}"
        ) from error
