"""Put a set of changed files into the package folder: all of them or none.

The way: a complete sibling copy (unchanged files hard-linked, changed ones written anew), then
one atomic exchange of the two folders (``renameat2`` with ``RENAME_EXCHANGE``), then the old
one is deleted. Where folders cannot be exchanged (overlay filesystems, mount points, other
kernels) the journal does it file by file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sgl_entropy.patching import journal
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

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EBUSY, errno.ENOTSUP, errno.EPERM)


def commit(root: Path, changes: Mapping[str, bytes | None]) -> list[str]:
    """Give the files named ``sglang/...`` in the package ``root`` new bytes; None deletes.

    Empty folders go with their last deleted file. The caller holds the lock and has called
    :func:`recover`.

    Returns:
        what a person should know of how it went.

    Raises:
        OSError, PatchError: it failed; the package is as before, or (the message says so) an
            unfinished journal is left that the next run settles.
    """
    inside = {name.removeprefix(PACKAGE + "/"): data for name, data in changes.items()}
    _refuse_links(root, inside)
    stage = make_sibling(root)
    try:
        _copy_tree(root, stage, inside)
        _change(root, stage, inside)
        _finish_tree(root, stage)
        exchange(stage, root)
    except OSError as error:
        try_remove(stage)
        if not isinstance(error, ExchangeUnsupported):
            raise
        journal.commit(root, inside)
        return [f"replaced file by file, with a journal: {error.strerror}"]
    except BaseException:
        try_remove(stage)
        raise
    with suppress(OSError):  # the exchange has happened; a power cut now may undo it, no more
        sync(root.parent)
    if not try_remove(stage):
        return [f"{stage}, the tree as it was before, could not be deleted; the next run retries"]
    return []


def recover(root: Path) -> list[str]:
    """Settle what a crashed run left: an unfinished journal, temporary folders. Needs the lock.

    Returns:
        what was done, one line each; empty if there was nothing.

    Raises:
        PatchError: a journal can be settled neither way.
    """
    notes = journal.recover(root)
    for left in leftovers(root):
        if try_remove(left):
            notes.append(f"removed {left.name}, left by a run that was cut short")
        else:
            notes.append(f"{left}, left by a run that was cut short, could not be deleted")
    return notes


def leftovers(root: Path) -> list[Path]:
    """Temporary folders (journals too) beside ``root``; strays if no run is under way."""
    return sorted(p for p in root.parent.iterdir() if p.name.startswith(prefix(root)))


class ExchangeUnsupported(OSError):
    """Folders cannot be exchanged here."""


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders, atomically.

    Raises:
        ExchangeUnsupported: the system or the filesystem has no such operation.
        OSError: it has, and it failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise ExchangeUnsupported(errno.ENOSYS, "this system cannot exchange folders")
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        reason = f"this filesystem cannot exchange folders ({os.strerror(code)})"
        raise ExchangeUnsupported(code, reason)
    raise OSError(code, os.strerror(code), str(one), None, str(other))


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


def _copy_tree(source: Path, target: Path, skip: Mapping[str, bytes | None]) -> None:
    for folder, folders, files in os.walk(source, onerror=_raise):
        here = Path(folder)
        there = target / here.relative_to(source)
        for name in list(folders):
            if (here / name).is_symlink():
                files.append(name)
            else:
                (there / name).mkdir()
        for name in files:
            path = here / name
            if str(path.relative_to(source)) in skip:
                continue
            if path.is_symlink():
                (there / name).symlink_to(os.readlink(path))
            else:
                link_or_copy(path, there / name)


def _change(source: Path, target: Path, changes: Mapping[str, bytes | None]) -> None:
    for name, data in changes.items():
        old = source / name
        if data is None:
            prune(target / name, target)
            continue
        make_parents(target / name, target)
        like = old if old.exists() else None
        write_new(target / name, data, like, like or source)


def _finish_tree(source: Path, target: Path) -> None:
    """Folder owners and modes from the original, bottom up, and every folder down to the disk."""
    for folder, _, _ in os.walk(target, topdown=False, onerror=_raise):
        there = Path(folder)
        here = source / there.relative_to(target)
        if here.is_dir():
            shutil.copymode(here, there)
            want, have = here.stat(), there.stat()
            if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid) and os.geteuid() == 0:
                os.chown(there, want.st_uid, want.st_gid)
        sync(there)


def _raise(error: OSError) -> None:
    raise error
