"""Read a JSON object that somebody else wrote, and say clearly what is wrong with it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NoReturn


class JsonFileError(ValueError):
    """The file is missing, unreadable, too large or no JSON object; the message names it."""


def no_constant(word: str) -> NoReturn:
    """``parse_constant`` of ``json.loads``: NaN and infinities are refused.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{word} is not a number")


def read_object(path: Path, *, limit: int = 1 << 20) -> dict[str, Any]:
    """The JSON object in ``path``.

    Args:
        limit: bytes; a larger file is refused unread (a config is a few KB).

    Raises:
        JsonFileError: see the class.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise JsonFileError(f"{path}: {size:,} bytes, expected at most {limit:,}")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JsonFileError(f"{path}: not found") from None
    except OSError as error:
        raise JsonFileError(f"{path}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise JsonFileError(f"{path}: not valid JSON: nested too deeply") from None
    except JsonFileError:
        raise
    except ValueError as error:  # bad JSON, bad UTF-8, integers of thousands of digits
        raise JsonFileError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise JsonFileError(f"{path}: expected a JSON object, found a {type(raw).__name__}")
    return raw


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file that grew while something was measured: none where there is
    no file, and without a line that an interrupt cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows
