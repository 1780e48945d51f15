"""Which target layers feed the drafter, and how wide their features are.

Upstream knows three taps of the target's width; these functions read both from the drafter's
config for EDSD and give upstream's own values for every other algorithm.
"""

from __future__ import annotations

from sgl_entropy.runtime.v0_5_6.drafters import served_edsd


def layer_ids(upstream: list[int] | None = None) -> list[int] | None:
    """``set_eagle3_layers_to_capture``'s argument: the drafter's taps, or upstream's choice."""
    drafter = served_edsd()
    if drafter is None or drafter.target_layer_ids is None:
        return upstream
    return list(drafter.target_layer_ids)


def feature_width(upstream: int) -> int:
    """Columns of the features that the target hands to the drafter."""
    drafter = served_edsd()
    return upstream if drafter is None else drafter.tap_width
