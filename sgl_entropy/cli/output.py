"""Where ``--json`` goes: a file, or stdout for ``-``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_json(where: str | Path | None) -> None:
    """Before minutes of work: can the report be written there at all?

    Raises:
        ValueError: the folder does not exist.
    """
    if where is not None and str(where) != "-" and not Path(where).absolute().parent.is_dir():
        raise ValueError(f"--json {where}: no such folder")


def write_json(report: Mapping[str, Any], where: str | Path | None) -> bool:
    """Write ``report`` (nowhere for None).

    Returns:
        Whether stdout is taken by it, so that nothing else belongs there.
    """
    if where is None:
        return False
    text = json.dumps(report, indent=1) + "\n"
    if str(where) == "-":
        sys.stdout.write(text)
        return True
    path = Path(where)
    if path.exists() and not path.is_file():  # /dev/stderr, a pipe
        path.write_text(text, encoding="utf-8")
        return False
    # Whole or not at all.
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return False
