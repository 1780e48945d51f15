"""The layouts in which drafters are published, as pairs of tensor names.

* ``published``: the EDSD authors' checkpoints and EAGLE-3 as SGLang and SpecForge write it:
  ``fc``, ``midlayer.*``, ``norm``, ``lm_head``, ``t2d``, ``d2t``.
* ``model-prefixed``: the same below ``model.``, with ``lm_head`` and the vocabulary maps at the
  top, as Hugging Face models save themselves.
* ``speculators``: vLLM's speculators library; the layer is ``layers.0`` and the config is nested.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Layout = Literal["published", "model-prefixed", "speculators"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_PREFIX = "model."
_LAYER = "layers.0."
_MIDLAYER = "midlayer."
_TOP = ("lm_head.weight", "t2d", "d2t")
# Frozen copies of the target's head and norm, kept for training alone.
TARGET_COPIES = ("verifier_lm_head.weight", "verifier_norm.weight")


def detect_layout(names: Iterable[str]) -> Layout:
    """The layout that a checkpoint's tensor names follow."""
    names = list(names)
    if any(name.startswith(_PREFIX) for name in names):
        return "model-prefixed"
    if any(name.startswith(_LAYER) or name in TARGET_COPIES for name in names):
        return "speculators"
    return "published"


def to_published(name: str) -> str:
    """The published name of a tensor in any known layout."""
    name = name.removeprefix(_PREFIX)
    return _MIDLAYER + name.removeprefix(_LAYER) if name.startswith(_LAYER) else name


def from_published(name: str, layout: Layout) -> str:
    """The name of a published tensor in ``layout``."""
    if layout == "model-prefixed":
        return name if name in _TOP else _PREFIX + name
    if layout == "speculators" and name.startswith(_MIDLAYER):
        return _LAYER + name.removeprefix(_MIDLAYER)
    return name
