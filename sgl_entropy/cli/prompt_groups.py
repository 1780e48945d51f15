"""``--texts`` of the commands that measure: files of prompts, a group a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgl_entropy.base.texts import read_texts, text_files


def add_texts(parser: argparse.ArgumentParser, what: str) -> None:
    """The option; ``what`` they are, for the help."""
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"{what}: .jsonl rows with turns, conversations, question, text or prompt; other "
        "files: a text a line; a folder means all of its files",
    )


def read_groups(texts: Sequence[Path], most: int) -> dict[str, list[str]]:
    """Name of a file without its ending -> its first ``most`` prompts.

    Raises:
        ValueError: not readable, or two files of one name.
    """
    files = text_files(texts)
    groups = {file.stem: [text.prompt for text in read_texts(file, most)] for file in files}
    if len(groups) < len(files):
        raise ValueError("two of the files have the same name: rename one, names are the groups")
    return groups
