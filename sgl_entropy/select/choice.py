"""From two profiles to two layers [ours where the paper is silent].

a is the hidden state of the highest curvature and b that of the highest LiDAR, among 1 .. L - 1:
the embedding output is no layer's, and SGLang captures no output of the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sgl_entropy.drafter.config import hidden_state_number, target_layer_id

MIN_LAYERS = 3


@dataclass(frozen=True)
class Choice:
    """Hidden states, in the paper's numbers.

    Attributes:
        a: by curvature.
        b: by LiDAR.
        fixed: those of "a" and "b" that a flag fixed.
        stepped_down: "a" or "b" if it is a runner-up, because the other has the same first pick.
    """

    a: int
    b: int
    fixed: tuple[str, ...] = ()
    stepped_down: str = ""

    @property
    def hidden_states(self) -> tuple[int, int]:
        """Both, rising: the order in which their features are concatenated."""
        return (min(self.a, self.b), max(self.a, self.b))

    @property
    def target_layer_ids(self) -> tuple[int, int]:
        """The same as decoder layers from 0, as a drafter's config has them."""
        low, high = self.hidden_states
        return (target_layer_id(low), target_layer_id(high))


def ranked(profile: Sequence[float], without: Collection[int] = ()) -> list[int]:
    """Candidates (1 .. L - 1 of a profile of 0 .. L), the best first; ties: the lower number."""
    candidates = [i for i in range(1, len(profile) - 1) if i not in without]
    return sorted(candidates, key=lambda i: (-profile[i], i))


def check_layers(num_layers: int, fix_a: int | None = None, fix_b: int | None = None) -> None:
    """Can two layers be chosen, and are the fixed ones (``target_layer_ids``) among them?

    Raises:
        ValueError: too few layers, or a fixed layer that cannot be tapped, or one fixed twice.
    """
    if num_layers < MIN_LAYERS:
        raise ValueError(
            f"the target has {num_layers} decoder layers: choosing two below the last one needs "
            f"at least {MIN_LAYERS}"
        )
    for name, layer in (("--fix-a", fix_a), ("--fix-b", fix_b)):
        if layer is not None and not 0 <= layer <= num_layers - 2:
            raise ValueError(
                f"{name} {layer}: expected a decoder layer id from 0 to {num_layers - 2} (the "
                f"target has {num_layers} layers, and SGLang cannot tap the last)"
            )
    if fix_a is not None and fix_a == fix_b:
        raise ValueError(f"--fix-a and --fix-b both name layer {fix_a}: a drafter taps two layers")


def choose(
    curvature: Sequence[float],
    lidar: Sequence[float],
    fix_a: int | None = None,
    fix_b: int | None = None,
) -> Choice:
    """The two hidden states.

    Where both metrics pick the same one, b is LiDAR's runner-up; where b is fixed to curvature's
    pick, a is curvature's runner-up.

    Args:
        curvature, lidar: of hidden states 0 .. L.
        fix_a, fix_b: a decoder layer id (as in ``target_layer_ids``) to use instead.

    Raises:
        ValueError: see ``check_layers``; or a profile is not finite.
    """
    check_layers(len(curvature) - 1, fix_a, fix_b)
    for name, profile in (("curvature", curvature), ("LiDAR", lidar)):
        odd = [i for i, value in enumerate(profile) if not math.isfinite(value)]
        if odd:
            raise ValueError(
                f"{name} of hidden states {odd} is not finite: the target's weights overflow or "
                "hold NaN"
            )
    fixed = tuple(n for n, layer in (("a", fix_a), ("b", fix_b)) if layer is not None)
    a = ranked(curvature)[0] if fix_a is None else hidden_state_number(fix_a)
    b = ranked(lidar)[0] if fix_b is None else hidden_state_number(fix_b)
    if a != b:
        return Choice(a, b, fixed)
    if fix_b is None:
        return Choice(a, ranked(lidar, {a})[0], fixed, "b")
    return Choice(ranked(curvature, {b})[0], b, fixed, "a")


def win_share(
    resampled: Sequence[Sequence[float]], chosen: int, without: Collection[int] = ()
) -> float:
    """Share of resampled profiles in which ``chosen`` ranks first, leaving out ``without``."""
    wins = sum(ranked(profile, without)[0] == chosen for profile in resampled)
    return wins / len(resampled)
