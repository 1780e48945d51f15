"""Every setting with its default and what it does, as a settings file. The text comes from the
docstrings of the settings' classes, so that it cannot lag behind them. (Ours.)
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from typing import Any

from sgl_entropy.train.settings.file import TrainSettings

_WIDTH = 96
# ``names: what they are``, at the indentation of the first line below "Attributes:".
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.+)")


def settings_file() -> str:
    """TOML that ``load_settings`` reads as the defaults, with a comment on every key."""
    whole = TrainSettings()
    lines = _keys(whole)
    for field in dataclasses.fields(whole):
        part = getattr(whole, field.name)
        if dataclasses.is_dataclass(part):
            lines += ["", f"[{field.name}]", *_keys(part)]
    return "\n".join(lines) + "\n"


def _keys(part: Any) -> list[str]:
    """A comment and a line for each key; keys that share a comment stand together."""
    told = attributes(type(part))
    lines: list[str] = []
    before = ""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            continue
        text = told[field.name]
        if text != before:
            lines += [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
        before = text
        lines.append(f"{field.name} = {_toml(value)}")
    return lines


def attributes(kind: type) -> dict[str, str]:
    """The text for each attribute in the docstring of ``kind``, by name."""
    told = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(told).splitlines():
        entry = None if line.startswith(" ") else _ENTRY.fullmatch(line)
        if entry:
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return {name: text.replace("``", "`").strip() for name, text in texts.items()}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
