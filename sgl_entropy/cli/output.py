"""Where reports go: ``--json``, ``--page`` (a file, or stdout for ``-``), ``--out`` (a folder)."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.base.disk import partial_of, write_whole


def check_reports(args: argparse.Namespace) -> None:
    """Before minutes of work: can the reports that were asked for be written at all?

    Raises:
        ValueError: not where ``--json``, ``--page`` or ``--plot`` says.
    """
    for flag in ("json", "page", "plot"):
        check_file(f"--{flag}", getattr(args, flag, None))


def check_file(flag: str, where: str | Path | None) -> None:
    """Can a file be written there? None and ``-`` are no files.

    Raises:
        ValueError: the folder does not exist, the name is a folder's, or the disk refuses.
    """
    if where is None or str(where) == "-":
        return
    path = Path(where)
    try:
        if path.is_dir():
            raise ValueError(f"{flag} {where}: that is a folder, name a file")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{flag} {where}: no such folder")
        if _is_device(path):
            # Not opened: a pipe's reader would take that for the end.
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            partial = partial_of(path)
            partial.open("xb").close()
            partial.unlink()
    except OSError as error:
        raise ValueError(f"{flag} {where}: cannot be written: {error.strerror}") from None


def check_folder(flag: str, where: Path | None) -> None:
    """Can a folder be filled, or made, there? None is nowhere.

    Raises:
        ValueError: a file is in the way, or the disk refuses.
    """
    if where is None:
        return
    path = where.absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise ValueError(f"{flag} {where}: {there} is a file, not a folder")
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise ValueError(f"{flag} {where}: cannot be written: {error.strerror}") from None


def say(line: str) -> None:
    """A line for people, on stderr: stdout may be taken by a report."""
    print(line, file=sys.stderr, flush=True)


def write_json(report: Mapping[str, Any], where: str | Path | None) -> bool:
    """Write ``report`` (nowhere for None).

    Returns:
        Whether stdout is taken by it, so that nothing else belongs there.
    """
    return write_text(json.dumps(report, indent=1) + "\n", where)


def write_text(text: str, where: str | Path | None) -> bool:
    """Write a page, whole or not at all; the same arguments and result as ``write_json``.

    Raises:
        OSError: no room, say; names the file.
    """
    if where is None:
        return False
    if str(where) == "-":
        sys.stdout.write(text)
        return True
    path = Path(where).resolve()  # a link stays one
    if _is_device(path):
        path.write_text(text, encoding="utf-8")
        return False
    write_whole(path, text)
    return False


def _is_device(path: Path) -> bool:
    """/dev/stderr, a pipe: written to, not replaced."""
    return path.exists() and not path.is_file()
