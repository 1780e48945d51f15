"""Give a set of files new contents: all of them or none, whatever kills the run.

The journal is a folder beside the package with the new files, hard links to the old ones, and a
list. It is written under a temporary name and takes effect by one rename. Then the new files are
moved into the package one after the other, and a second rename, away from the journal's name,
makes the change final. A run that fails or is killed between the two renames is undone, by itself
or by the next run: the old files are moved back. Undoing may be repeated at any point, so a crash
during it is no different.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sgl_entropy.patching.errors import PatchError
from sgl_entropy.patching.fsops import (
    link_or_copy,
    make_parents,
    make_sibling,
    prefix,
    prune,
    sync,
    try_remove,
    write_new,
)
from sgl_entropy.patching.install import PACKAGE


def commit(root: Path, changes: Mapping[str, bytes | None]) -> None:
    """Give the files named ``sglang/...`` in the package ``root`` new bytes; None deletes.

    A folder is removed with the last file in it. The caller holds the lock and has called
    :func:`recover`.

    Raises:
        OSError: it failed; every file is as before.
        PatchError: a folder of the package is a symbolic link and nothing was changed; or it
            failed, could not be undone, and the journal stays for the next run.
    """
    inside = {name.removeprefix(PACKAGE + "/"): data for name, data in changes.items()}
    _refuse_links(root, inside)
    journal = root.parent / f"{prefix(root)}journal"
    folder = make_sibling(root)
    try:
        _write(folder, root, inside)
        folder.rename(journal)
    except BaseException:
        try_remove(folder)
        raise
    try:
        sync(root.parent)
        _replace(journal, root)
        done = _set_aside(journal, root)
    except BaseException as error:
        if journal.is_dir():  # else an interrupt came after the rename: the change is final
            _undo(journal, root, error)
        raise
    _delete(done)


def recover(root: Path) -> list[str]:
    """Undo what a crashed run left half-done and delete its temporary folders. Needs the lock.

    Returns:
        what was done, one line each; empty if there was nothing.

    Raises:
        PatchError: a half-finished change cannot be undone; says why.
    """
    notes = []
    for journal in journals(root):
        _undo(journal, root, None)
        notes.append("undid the half-finished change of a run that was cut short")
    for stray in _siblings(root, ""):
        if try_remove(stray):
            notes.append(f"removed {stray.name}, left by a run that was cut short")
        else:
            notes.append(f"{stray}, left by a run that was cut short, could not be deleted")
    return notes


def journals(root: Path) -> list[Path]:
    """The journals beside ``root``: of a run under way, or of one that was cut short."""
    return _siblings(root, "journal")


def _siblings(root: Path, name: str) -> list[Path]:
    start = prefix(root) + name
    return sorted(path for path in root.parent.iterdir() if path.name.startswith(start))


def _refuse_links(root: Path, changes: Mapping[str, bytes | None]) -> None:
    """A linked folder inside the package leads to files that are not this install's own."""
    linked = {}
    for name in changes:
        for folder in (root / name).parents:
            if folder == root:
                break
            if folder.is_symlink():
                linked[f"{PACKAGE}/{folder.relative_to(root)}"] = f"links to {os.readlink(folder)}"
    if linked:
        raise PatchError(
            f"{root}: these folders are symbolic links, so the files in them may be shared with "
            "other installs. Replace the links by real folders.",
            linked,
        )


def _write(folder: Path, root: Path, changes: Mapping[str, bytes | None]) -> None:
    steps = []
    for index, (name, data) in enumerate(sorted(changes.items())):
        old = root / name
        existed = old.is_symlink() or old.exists()
        if existed:
            link_or_copy(old, folder / f"old{index}")
        if data is not None:
            write_new(folder / f"new{index}", data, old if old.exists() else None, root)
        steps.append([name, existed, data is not None])
    write_new(folder / "steps.json", json.dumps(steps).encode(), None, root)
    sync(folder)


def _steps(journal: Path) -> list[tuple[int, str, bool, bool]]:
    """Of each file: its number, its name, whether it existed, whether it shall exist."""
    raw = json.loads((journal / "steps.json").read_bytes())
    return [(index, *step) for index, step in enumerate(raw)]


def _replace(journal: Path, root: Path) -> None:
    for index, name, _, shall_exist in _steps(journal):
        _put(journal / f"new{index}" if shall_exist else None, root / name, root)
    _sync_folders(journal, root)


def _put_back(journal: Path, root: Path) -> None:
    # Backwards: a file that a later step needs as a folder is made last.
    for index, name, existed, _ in reversed(_steps(journal)):
        old = journal / f"old{index}"
        if not existed or old.is_symlink() or old.exists():  # else an earlier try moved it
            _put(old if existed else None, root / name, root)
    _sync_folders(journal, root)


def _put(new: Path | None, target: Path, root: Path) -> None:
    if new is None:
        with suppress(NotADirectoryError):  # a file stands where its folder would be: not there
            target.unlink(missing_ok=True)
        prune(target, root)
    else:
        make_parents(target, root)
        os.replace(new, target)


def _sync_folders(journal: Path, root: Path) -> None:
    for folder in {(root / name).parent for _, name, _, _ in _steps(journal)}:
        if folder.is_dir():
            sync(folder)


def _undo(journal: Path, root: Path, error: BaseException | None) -> None:
    try:
        _put_back(journal, root)
        done = _set_aside(journal, root)
    except (OSError, ValueError) as second:
        raise PatchError(
            f"{root}: changing the files failed ({error or 'in an earlier run'}), and undoing the "
            f"change failed too ({second}). Some files are old and some new. The journal that can "
            f"undo it is kept beside the package; make {root.parent} writable, with some free "
            "space, and run this command again."
        ) from error
    _delete(done)


def _set_aside(journal: Path, root: Path) -> Path:
    """What is in the package now counts: under its new name the folder is an ordinary stray."""
    return journal.rename(root.parent / f"{prefix(root)}{os.urandom(4).hex()}")


def _delete(stray: Path) -> None:
    """Nothing is raised: the change is final, and the next run deletes what stays."""
    with suppress(OSError):  # a power cut must not lose the rename and keep the deletion
        sync(stray.parent)
        try_remove(stray)
