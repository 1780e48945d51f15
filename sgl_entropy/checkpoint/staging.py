"""Write a checkpoint folder whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgl_entropy.checkpoint.errors import DrafterError


@contextmanager
def staged_folder(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into; it becomes ``destination`` when the block ends well.

    A crash leaves the old folder or the new one. With ``overwrite`` a checkpoint that is there
    is replaced; its files that are neither config nor weights move into the new one.

    Raises:
        DrafterError: something that is no checkpoint is in the way, or the disk refuses.
    """
    destination = destination.absolute()
    kept = _files_to_keep(destination, overwrite=overwrite)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        stage = _new_sibling(destination, "part")
    except OSError as error:
        raise DrafterError(f"{destination}: cannot be written: {error.strerror}") from None
    try:
        yield stage
        for path in kept:
            if not (stage / path.name).exists():
                shutil.copy2(path, stage / path.name)
        _sync(stage)
        _swap(stage, destination)
    except OSError as error:
        raise DrafterError(
            f"{destination}: cannot be written: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _files_to_keep(destination: Path, *, overwrite: bool) -> list[Path]:
    if not destination.exists() and not destination.is_symlink():
        return []
    if not destination.is_dir() or destination.is_symlink():
        raise DrafterError(f"{destination}: is no folder of its own; choose another destination")
    present = sorted(destination.iterdir())
    if not present:
        return []
    if not overwrite:
        raise DrafterError(
            f"{destination}: already there and not empty; choose another destination, or --force"
        )
    # Replacing is for checkpoints alone: a mistyped path must not cost anybody a folder.
    if not (destination / "config.json").is_file() or any(p.is_dir() for p in present):
        raise DrafterError(
            f"{destination}: holds something other than a checkpoint (expected config.json and "
            "no subfolders); it is not replaced, choose another destination"
        )
    return [
        p
        for p in present
        if p.name != "config.json"
        and p.suffix != ".safetensors"
        and not p.name.endswith(".safetensors.index.json")
    ]


def _swap(stage: Path, destination: Path) -> None:
    if not destination.exists():
        os.rename(stage, destination)
        return
    old = _new_sibling(destination, "old")
    try:
        os.rename(destination, old)  # an empty folder may be renamed onto
    except OSError as error:
        old.rmdir()
        if error.errno != errno.EBUSY:
            raise
        _pour(stage, destination)
        return
    try:
        os.rename(stage, destination)
    except OSError:
        os.rename(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _pour(stage: Path, destination: Path) -> None:
    """Into a mount point (a container's volume), which cannot be renamed: each file whole, and the
    config, without which there is no checkpoint, last."""
    for path in sorted(stage.iterdir(), key=lambda path: path.name == "config.json"):
        partial = destination / f".{path.name}.partial"
        try:
            shutil.copyfile(path, partial)
            partial.replace(destination / path.name)
        finally:
            partial.unlink(missing_ok=True)
    for path in destination.iterdir():  # shards of the checkpoint before
        if not (stage / path.name).exists():
            path.unlink()


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _new_sibling(path: Path, kind: str) -> Path:
    """A new hidden folder beside ``path``: on its file system, so that a rename is atomic."""
    sibling = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{kind}")
    sibling.mkdir()
    return sibling
