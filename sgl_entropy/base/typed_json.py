"""Dataclasses as JSON objects and back, every field checked.

A field whose default is None is left out while it is None. A field with the metadata ``FLAT``
holds a dataclass whose own fields stand in the object of its parent, so that a file may stay flat
while the code is composed; if it may be None, it is None where the object holds none of its keys.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
# Metadata of a field whose value is written into the object of its parent.
FLAT = {"flat": True}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    Mapping: "an object",
}


def as_json(value: Any) -> Any:
    """``value`` as ``json.dumps`` takes it: dataclasses and mappings become objects."""
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for one in fields(value):
            content = getattr(value, one.name)
            if content is None and (one.default is None or one.metadata.get("flat")):
                continue
            if one.metadata.get("flat"):
                out |= as_json(content)
            else:
                out[one.name] = as_json(content)
        return out
    if isinstance(value, Mapping):
        return {str(name): as_json(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    return value


def from_json(kind: type[T], value: Any, where: str = "") -> T:
    """The dataclass ``kind`` from a JSON object.

    Args:
        where: names the object in errors.

    Raises:
        ValueError: no object, a key that is missing or unknown, or a value of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{_before(where)}expected an object, found {_found(value)}")
    known: tuple[str, ...] = _keys(kind)  # type: ignore[arg-type]
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ValueError(f"{_before(where)}unknown keys: {', '.join(unknown)}")
    return _built(kind, value, where)


def _built(kind: type[T], value: dict[str, Any], where: str) -> T:
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    missing = []
    for one in fields(kind):  # type: ignore[arg-type]
        hint = hints[one.name]
        if one.metadata.get("flat"):
            inner = _dataclass_of(hint)
            own = {name: value[name] for name in _keys(inner) if name in value}
            given[one.name] = _built(inner, own, where) if own or inner is hint else None
        elif one.name in value:
            given[one.name] = _value(hint, value[one.name], f"{_before(where)}{one.name}")
        elif _required(one):
            missing.append(one.name)
    if missing:
        raise ValueError(f"{_before(where)}lacks {', '.join(missing)}")
    return kind(**given)


@functools.cache
def _keys(kind: type) -> tuple[str, ...]:
    """The keys of the object of ``kind``, those of flat fields among them."""
    hints = get_type_hints(kind)
    keys: list[str] = []
    for one in fields(kind):
        inner = _keys(_dataclass_of(hints[one.name])) if one.metadata.get("flat") else (one.name,)
        keys += inner
    return tuple(keys)


def _dataclass_of(hint: Any) -> Any:
    """``X`` from ``X`` or ``X | None``."""
    return next((part for part in get_args(hint) if is_dataclass(part)), hint)


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        (inner,) = (part for part in parts if part is not type(None))
        return _value(inner, value, where)
    if origin is Literal and any(value == part and type(value) is type(part) for part in parts):
        return value
    if is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    named = tuple(get_type_hints(hint).values()) if hasattr(hint, "_fields") else None
    if (origin in (tuple, list) or named) and isinstance(value, list):
        alike = origin is list or Ellipsis in parts
        each = named or (parts[:1] * len(value) if alike else parts)
        if len(each) != len(value):
            raise ValueError(f"{where}: expected {len(each)} entries, found {_found(value)}")
        pairs = enumerate(zip(each, value, strict=True))
        items = [_value(*pair, f"{where}[{i}]") for i, pair in pairs]
        return hint(*items) if named else origin(items)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _value(parts[1], one, f"{where}.{name}") for name, one in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number beyond every float
            return float(value)
    if origin is None and isinstance(value, hint) and (hint is bool or type(value) is not bool):
        return value
    words = f"one of {parts}" if origin is Literal else _WORDS.get(origin or hint, "a list")
    raise ValueError(f"{where}: expected {words}, found {_found(value)}")


def _before(where: str) -> str:
    return f"{where}: " if where else ""


def _found(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:60] if value is not None else "null"
