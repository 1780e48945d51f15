"""Rows of a data set: JSON Lines, or a data set of the Hub by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def read_rows(source: str) -> Iterator[tuple[str, Row]]:
    """(file and line, row) of ``FILE.jsonl`` or ``hf:NAME[:SPLIT[:CONFIG]]`` (split: test).

    Raises:
        ValueError: a line that is no object (named), no row at all, or the data set's own error.
        OSError: not readable.
    """
    rows = _from_hub(source) if source.startswith("hf:") else _from_file(Path(source).expanduser())
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source} holds no row")
    yield first
    yield from rows


def _from_file(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}:{number}: expected a JSON object on every line")
                yield f"{path}:{number}", row
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}") from None


def _from_hub(source: str) -> Iterator[tuple[str, Row]]:
    name, _, rest = source[3:].partition(":")
    split, _, config = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            f"{source}: `pip install datasets` to read data sets by name, or give a JSON Lines file"
        ) from None
    # Each try of a connection is a warning of several lines.
    log = logging.getLogger("huggingface_hub")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        rows = load_dataset(name, config or None, split=split or "test")
    except Exception as error:  # the library raises many kinds, for network and names alike
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            reason = "the Hugging Face Hub cannot be reached"
        else:
            reason = f"{error}".partition("\n")[0]
        raise ValueError(
            f"{source}: {reason}; give a JSON Lines file instead, as --task NAME=FILE"
        ) from None
    finally:
        log.setLevel(before)
    for number, row in enumerate(rows):
        yield f"{source} row {number}", row
