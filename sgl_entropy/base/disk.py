"""Files that appear whole or not at all, their hashes, and what to say when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = ("No space left on device", "Disk quota exceeded")


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk is full; safetensors says so in its text alone."""
    numbered = isinstance(error, OSError) and error.errno in _NUMBERS
    return numbered or any(text in str(error) for text in _TEXTS)


def full_disk(path: Path, error: BaseException) -> str:
    """The message for a person."""
    return (
        f"the disk is full: {path} could not be written ({error}); what was finished before is "
        "kept: make room there, and run it again"
    )


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Name the file when the disk is full while ``path`` is written: Python's own error does not.

    Raises:
        OSError: the disk is full; says which file could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NUMBERS:  # an error that was named already has no number
            raise OSError(full_disk(path, error)) from error
        raise


def partial_of(path: Path) -> Path:
    """The name under which ``write_whole`` writes ``path`` in this process until it is complete."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all, also where two processes write it at once.

    Raises:
        OSError: it could not be written; names ``path``, and leaves what was there before.
    """
    partial = partial_of(path)
    try:
        with naming_full_disk(path):
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
    except OSError as error:
        if error.errno is None:  # named already
            raise
        raise OSError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits.

    Read in pieces: Python 3.10 has no ``hashlib.file_digest``.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
