"""Replace files one by one, and still all or none: a journal that the next run settles.

The journal is a folder beside the package: the new files, hard links to the old ones, and a
list. It comes into being under a temporary name and takes effect by one rename to ``...redo``;
from then on the new state counts: a crash is followed by moving what is left of the new files.
Where that fails, one rename to ``...undo`` turns the direction for good, and the old files are
moved back. Every step may be repeated, so a crash during recovery is no different.
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


def commit(root: Path, changes: Mapping[str, bytes | None]) -> None:
    """Give files (names relative to ``root``) new bytes, None deletes; all or none.

    Raises:
        OSError: it failed; everything is as before.
        PatchError: it failed and so did the way back; the journal stays for the next run.
    """
    folder = make_sibling(root)
    try:
        _write(folder, root, changes)
        redo = _rename(folder, _redo(root))
    except BaseException:
        try_remove(folder)
        raise
    try:
        sync(root.parent)
        _forward(redo, root)
    except BaseException as error:
        _turn_back(root, error)
        raise
    _discard(redo, root)


def recover(root: Path) -> list[str]:
    """Finish, or else undo, a journal that a crashed run left beside ``root``.

    Returns:
        what was done, empty if there was no journal.

    Raises:
        PatchError: neither way works; says why.
    """
    redo, undo = _redo(root), _undo(root)
    if redo.is_dir():
        try:
            _forward(redo, root)
        except OSError as error:
            _turn_back(root, error)
            return [f"undid the half-finished change of a run that was cut short ({error})"]
        _discard(redo, root)
        return ["finished the half-finished change of a run that was cut short"]
    if undo.is_dir():
        _turn_back(root, None)
        return ["undid the half-finished change of a run that was cut short"]
    return []


def _redo(root: Path) -> Path:
    return root.parent / f"{prefix(root)}journal.redo"


def _undo(root: Path) -> Path:
    return root.parent / f"{prefix(root)}journal.undo"


def _write(folder: Path, root: Path, changes: Mapping[str, bytes | None]) -> None:
    steps = []
    for index, (name, data) in enumerate(sorted(changes.items())):
        old = root / name
        existed = old.is_symlink() or old.exists()
        if existed:
            link_or_copy(old, folder / f"old{index}")
        if data is not None:
            like = old if old.exists() else None
            write_new(folder / f"new{index}", data, like, like or root)
        steps.append([name, existed, data is not None])
    write_new(folder / "steps.json", json.dumps(steps).encode(), None, root)
    sync(folder)


def _steps(folder: Path) -> list[tuple[int, str, bool, bool]]:
    raw = json.loads((folder / "steps.json").read_bytes())
    return [(index, *step) for index, step in enumerate(raw)]


def _forward(folder: Path, root: Path) -> None:
    touched = set()
    for index, name, _, stays in _steps(folder):
        target, new = root / name, folder / f"new{index}"
        if not stays:
            target.unlink(missing_ok=True)
            prune(target, root)
        elif new.exists():  # else it was moved before the crash
            make_parents(target, root)
            os.replace(new, target)
        touched.add(target.parent)
    _sync_all(touched)


def _backward(folder: Path, root: Path) -> None:
    touched = set()
    for index, name, existed, _ in _steps(folder):
        target, old = root / name, folder / f"old{index}"
        if not existed:
            target.unlink(missing_ok=True)
            prune(target, root)
        elif old.is_symlink() or old.exists():
            make_parents(target, root)
            os.replace(old, target)
        touched.add(target.parent)
    _sync_all(touched)


def _turn_back(root: Path, error: BaseException | None) -> None:
    try:
        undo = _undo(root) if error is None else _rename(_redo(root), _undo(root))
        _backward(undo, root)
    except OSError as second:
        raise PatchError(
            f"{root}: changing the files failed ({error or 'in an earlier run'}), and so did the "
            f"way back ({second}). Some files are old and some new. The journal that can put this "
            f"right is kept beside the package; make {root.parent} writable, with some free space, "
            "and run this command again."
        ) from error
    _discard(undo, root)


def _discard(folder: Path, root: Path) -> None:
    """Done: one rename makes it an ordinary stray, so that a crash while deleting is harmless.

    Where even that fails, the next run repeats the steps, which changes nothing.
    """
    with suppress(OSError):
        try_remove(_rename(folder, root.parent / f"{prefix(root)}{os.urandom(4).hex()}"))


def _rename(folder: Path, name: Path) -> Path:
    os.rename(folder, name)
    return name


def _sync_all(folders: set[Path]) -> None:
    for folder in folders:
        if folder.is_dir():
            sync(folder)
