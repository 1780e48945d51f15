"""Dataclasses through JSON and back: nothing is lost, nothing wrong gets in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sgl_entropy.base.typed_json import FLAT, as_json, from_json


@dataclass(frozen=True)
class Part:
    size: float
    kind: Literal["a", "b"] = "a"
    format: Literal[1] = 1


@dataclass(frozen=True)
class Whole:
    name: str
    own: Part = field(metadata=FLAT)
    parts: tuple[Part, ...]
    sizes: list[int]
    counts: dict[str, int]
    free: dict[str, Any]
    note: str | None = None
    known: float | None = field(kw_only=True)


WHOLE = Whole(
    "w", Part(1.5, "b"), (Part(2.0), Part(3.0, "b")), [1, 2], {"x": 1}, {"y": [None]}, known=None
)


def test_what_is_written_is_read_back() -> None:
    written = as_json(WHOLE)
    assert written["size"] == 1.5, "a flat field stands in the object of its parent"
    assert "note" not in written, "left out while it is its default None"
    assert written["known"] is None, "kept, as it has no default"
    assert from_json(Whole, json.loads(json.dumps(written)), "file") == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "file: unknown keys: colour"),
        ({"name": 1}, "file: name: expected .*, found int 1"),
        ({"size": True}, "file: size: expected .*, found bool True"),
        ({"size": 10**400}, "file: size: expected a number, found int 1000"),
        ({"kind": "c"}, "file: kind: expected one of .*, found str 'c'"),
        ({"kind": []}, r"file: kind: expected one of .*, found list \[\]"),
        ({"format": True}, "file: format: expected one of .*, found bool True"),
        ({"parts": [{"size": 1.0}, {}]}, r"file: parts\[1\]: lacks size"),
        ({"sizes": [1, "2"]}, r"file: sizes\[1\]: expected a whole number, found str '2'"),
        ({"counts": {"x": "one"}}, "file: counts.x: expected .*, found str 'one'"),
        ({"known": "5"}, "file: known: expected .*, found str '5'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Whole, as_json(WHOLE) | change, "file")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="file: lacks name, known"):
        from_json(
            Whole, {k: v for k, v in as_json(WHOLE).items() if k not in ("name", "known")}, "file"
        )
    with pytest.raises(ValueError, match="expected an object, found list"):
        from_json(Whole, [], "file")
