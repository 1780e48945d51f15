"""Read a settings file that somebody wrote: TOML or JSON, by the file's name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sgl_entropy.base.json_file import read_object

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_table(path: Path) -> dict[str, Any]:
    """The table in ``path``: JSON if it is named ``.json``, else TOML.

    Raises:
        ValueError: missing, unreadable or of another form; names the file.
    """
    if path.suffix == ".json":
        return read_object(path)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    return table
