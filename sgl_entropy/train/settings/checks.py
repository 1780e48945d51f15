"""Range checks of settings, shared by all sections."""

from __future__ import annotations

import math
from collections.abc import Sequence


def out_of_range(
    section: str, given: object, names: Sequence[str], low: float, high: float = math.inf
) -> list[str]:
    """A line for each of ``given``'s numbers ``names`` that is not finite and from ``low`` to
    ``high``, both included."""
    wanted = f"be at least {low}" if high == math.inf else f"be from {low} to {high}"
    values = [(name, getattr(given, name)) for name in names]
    return [
        f"{section}.{name} must {wanted}, found {value!r}"
        for name, value in values
        if not (math.isfinite(value) and low <= value <= high)
    ]


def no_layers(section: str, name: str, layers: Sequence[int], *, empty: bool) -> list[str]:
    """A line if ``layers`` are not numbers from 0; ``empty``: whether the list may be empty."""
    if (layers or empty) and all(layer >= 0 for layer in layers):
        return []
    return [f"{section}.{name} must list layers from 0, found {list(layers)!r}"]


def no_taps(section: str, name: str, layers: Sequence[int], *, empty: bool) -> list[str]:
    """As ``no_layers``, for the layers that a drafter taps, which have to rise."""
    wrong = no_layers(section, name, layers, empty=empty)
    given, rising = list(layers), sorted(set(layers))
    if wrong or given == rising:
        return wrong
    mended = str(rising) if len(rising) == len(given) else "name other layers"
    return [f"{section}.{name} must rise without repeats, found {given!r}: {mended}"]
