"""``sgl-entropy target``: print the folder of the small real target, converted at first use."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_entropy.base.cache import cache_dir
from sgl_entropy.cli.output import check_folder
from sgl_entropy.target.smollm2 import FOLDER_NAME, ensure_small_target

EXAMPLES = """examples:
  sgl-entropy target                 # prints the folder; converts on first use (540 MB)
  sgl-entropy target --out ./smollm2"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``target``."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"write it there instead (default: {cache_dir() / FOLDER_NAME})",
    )
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Print the folder's path, alone on its line, for use in scripts."""
    check_folder("--out", args.out)
    print(ensure_small_target(args.out))
    return 0
