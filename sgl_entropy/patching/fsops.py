"""The few filesystem operations that a change of installed files needs.

Files are always replaced, never written in place: package managers hard-link installed files
into their caches.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgl_entropy.patching.errors import PatchError

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def prefix(root: Path) -> str:
    """How the names of all our temporary siblings of the package folder ``root`` begin."""
    return f".{root.name}-sgl-entropy-"


def make_sibling(root: Path) -> Path:
    """A new empty folder beside ``root``, on the same filesystem."""
    return Path(tempfile.mkdtemp(prefix=prefix(root), dir=root.parent))


def write_new(path: Path, data: bytes, like: Path | None, root: Path) -> None:
    """Write the new file ``path`` down to the disk.

    Args:
        like: an existing file to take owner and permissions from; the new file's time differs
            from its by whole seconds, so that Python never takes the old bytecode for the new
            source. None: the owner of ``root``, and permissions 0644.
        root: the package folder.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        before = like.stat() if like is not None else None
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode) if before else 0o644)
        _own(descriptor, like or root)
        if before and int(before.st_mtime) >= int(os.fstat(descriptor).st_mtime):
            later = int(before.st_mtime) + 1
            os.utime(descriptor, (later, later))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(path: Path, root: Path) -> None:
    """Make the folders between ``root`` and ``path`` that do not exist, as ``root``'s owner."""
    missing = []
    while path.parent != root and not path.parent.is_dir():
        path = path.parent
        missing.append(path)
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _own(descriptor, root)
        finally:
            os.close(descriptor)


def _own(descriptor: int, like: Path) -> None:
    want, have = like.stat(), os.fstat(descriptor)
    if (want.st_uid, want.st_gid) != (have.st_uid, have.st_gid):
        with suppress(PermissionError):  # only root may give files away; ours are as good
            os.fchown(descriptor, want.st_uid, want.st_gid)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link ``source`` as ``target``, or copy it where links are not allowed."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        # Foreign owners (fs.protected_hardlinks), no links on this filesystem, too many of them.
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS):
            raise
        shutil.copy2(source, target, follow_symlinks=False)
        if not target.is_symlink():
            sync(target)


def prune(path: Path, root: Path) -> None:
    """Remove the folders between ``path`` (which was deleted) and ``root`` that are empty now.

    A run that was cut short may have removed the lower ones already.
    """
    folder = path.parent
    while folder != root:
        if folder.is_dir():
            if any(folder.iterdir()):
                return
            folder.rmdir()
        folder = folder.parent


def sync(path: Path) -> None:
    """Make the content of a file, or the entries of a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_remove(folder: Path) -> bool:
    """Delete a temporary tree; False (nothing raised) where that fails, for the next run to do."""
    try:
        shutil.rmtree(folder)
    except OSError:
        return False
    return True


@contextmanager
def lock(root: Path, patience_s: float = 60.0) -> Iterator[OSError | None]:
    """Hold the lock on ``root`` (a file beside it, gone afterwards).

    Yields:
        None, or the error where the parent folder is read-only, so that nothing is locked: who
        wants to write must raise it.

    Raises:
        PatchError: another process has held it for ``patience_s`` seconds.
    """
    path = root.parent / f".{root.name}-sgl-entropy.lock"
    try:
        descriptor = _acquire(path, time.monotonic() + patience_s)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        yield error
        return
    try:
        yield None
    finally:
        with suppress(OSError):
            path.unlink()  # before the release: see _acquire
        os.close(descriptor)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            # The holder before us deleted the file that we had opened: its name is a new one now.
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise PatchError(
                    f"another sgl-entropy patch is at work on this SGLang (it holds {path}). Wait "
                    "for it, or end it, and run this again."
                ) from None
            time.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
