"""Files that a command reads: they are looked for before any work, by the flag that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def input_file(flag: str, expected: str) -> Callable[[str], Path]:
    """``type`` of an argument that names a file to read (a pipe will do).

    Args:
        expected: what the file holds, for the message.
    """

    def file(text: str) -> Path:
        path = Path(text)
        if not path.exists() or path.is_dir():
            what = "that is a folder" if path.is_dir() else "no such file"
            # argparse would print its usage before a ValueError's message.
            raise FileNotFoundError(f"{flag} {text}: {what}; expected {expected}")
        return path

    return file


ARMS_FILE = input_file("--launch", "an arms file, such as bench/arms/small-target-cpu.toml")
