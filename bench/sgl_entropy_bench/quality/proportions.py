"""Statistics of right and wrong: intervals of a share and of a paired difference, exact tests.

With several samples a question, answers to one question are not independent: questions are the
unit everywhere, and every function reduces to the textbook's form at one sample a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

from sgl_entropy.base.intervals import Interval, wilson


def accuracy(shares: Sequence[float], samples: int = 1) -> Interval:
    """Mean share of right answers over questions, with Wilson's interval.

    Args:
        shares: of each question's samples that are right.
        samples: a question. Above 1 the interval is that of an effective number of answers, from
            the spread between questions (ours): at least the questions, at most the answers.

    Raises:
        ValueError: no question.
    """
    if not shares:
        raise ValueError("accuracy: no question")
    count = len(shares)
    mean = min(1.0, max(0.0, fmean(shares)))
    effective = float(count)
    if samples > 1 and count > 1:
        spread = variance(shares) / count
        # Where all is right, or nothing, a spread of 0 says nothing about samples.
        within = mean * (1 - mean)
        independent = within / spread if spread > 0 else math.inf if within > 0 else 0.0
        effective = min(float(count * samples), max(float(count), independent))
    low, high = wilson(mean * effective, effective)
    return Interval(mean, low, high, count, True)


def difference(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of paired differences of shares, each from -1 to 1.

    The interval is Agresti and Min's (2005) for matched pairs: Wald's after half a pair was added
    to each of the four cells, which holds its level also where few pairs differ.

    Raises:
        ValueError: no pair.
    """
    if not differences:
        raise ValueError("difference: no pair")
    count = len(differences) + 2
    mean = sum(differences) / count
    # Of the two added pairs, half a pair lies at +1 and half a pair at -1.
    spread = (sum(d * d for d in differences) + 1) / count - mean * mean
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(max(0.0, spread) / count)
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return Interval(fmean(differences), low, high, len(differences), True)


def sign_flips(differences: Sequence[int]) -> float:
    """The exact sign-flip test of paired counts, two-sided: the probability that the sum of the
    differences is at least so far from 0 when each has either sign with equal chance.

    With one sample a question this is McNemar's exact test, the binomial one at 1/2 of the answers
    that are right on one arm alone; with more, each question is one unit.

    Args:
        differences: right answers of one arm less those of the other, question by question.
    """
    sizes = [abs(d) for d in differences if d]
    reach = sum(sizes)
    # Weights of the sums from -reach to reach, as whole numbers: exact however many there are.
    weights = [0] * (2 * reach + 1)
    weights[reach] = 1
    for size in sizes:
        before = weights
        weights = [
            (before[at - size] if at >= size else 0)
            + (before[at + size] if at + size <= 2 * reach else 0)
            for at in range(2 * reach + 1)
        ]
    far = abs(sum(differences))
    tail = sum(weight for at, weight in enumerate(weights) if abs(at - reach) >= far)
    return min(1.0, float(tail / 2 ** len(sizes)))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for being several (S. Holm, 1979), in the order given."""
    adjusted = [0.0] * len(values)
    least = 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        least = max(least, min(1.0, (len(values) - rank) * values[at]))
        adjusted[at] = least
    return adjusted
