"""Files that appear whole or not at all, and a full disk, told from other errors by the file that
had no room."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = ("No space left on device", "Disk quota exceeded")


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room; safetensors' say it in their text alone."""
    held = isinstance(error, OSError) and error.errno in _NUMBERS
    return held or any(text in str(error) for text in _TEXTS)


def full_disk(path: Path, error: BaseException) -> str:
    """What to tell of it."""
    return (
        f"the disk is full: {path} could not be written ({error}); what was finished before is "
        "kept: make room there, and run it again"
    )


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """
    Raises:
        OSError: no room for ``path``, which Python's own error does not name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NUMBERS:  # one that is named already has none
            raise OSError(full_disk(path, error)) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all, also where two processes write it at once.

    Raises:
        OSError: as ``naming_full_disk``; nothing is left of it then.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with naming_full_disk(path):
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
