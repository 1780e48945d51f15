"""Distributions of times and lengths."""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RandomLaw:
    """The distribution of a time in seconds or of a length; never negative.

    ``variation`` is the coefficient of variation: 0 for a constant, 1 for an exponential law.
    """

    written: str
    mean: float
    variation: float

    @classmethod
    def parse(cls, written: str) -> RandomLaw:
        """``0.02``, ``constant:0.02``, ``exponential:0.02`` or ``gamma:0.02:0.5``.

        Raises argparse.ArgumentTypeError on anything else.
        """
        kind, *words = written.split(":") if ":" in written else ("constant", written)
        try:
            mean, *rest = map(float, words)
            variations = {"constant": [0.0, *rest], "exponential": [1.0, *rest], "gamma": rest}
            (variation,) = variations[kind]
        except (KeyError, ValueError):
            raise argparse.ArgumentTypeError(
                f"expected constant:M, exponential:M, gamma:M:CV or a number, found {written!r}"
            ) from None
        if not 0 <= mean < math.inf:
            raise argparse.ArgumentTypeError(f"the mean must be 0 or more, found {written!r}")
        if variation != 0 and not 0.001 <= variation <= 100:
            raise argparse.ArgumentTypeError(
                f"the coefficient of variation must be 0 or 0.001 to 100, found {written!r}"
            )
        return cls(written, mean, variation)

    def draw(self, generator: random.Random) -> float:
        """One value."""
        if self.variation == 0 or self.mean == 0:
            return self.mean
        shape = self.variation**-2
        return generator.gammavariate(shape, self.mean / shape)
