"""One question for every sampling test: do these counts come from these probabilities?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from scipy.stats import chi2


def p_value(drawn: Sequence[Hashable], expected: Mapping[Hashable, float]) -> float:
    """Pearson's chi-square test of draws against exact probabilities.

    Outcomes expected fewer than five times are pooled. A draw of probability zero gives 0.0.
    """
    assert abs(sum(expected.values()) - 1) < 1e-4, sum(expected.values())
    counts = Counter(drawn)
    if any(expected.get(outcome, 0.0) <= 0.0 for outcome in counts):
        return 0.0
    cells: list[tuple[float, float]] = []
    rare_seen = rare_expected = 0.0
    for outcome, probability in expected.items():
        mean = probability * len(drawn)
        if mean >= 5:
            cells.append((counts[outcome], mean))
        else:
            rare_seen, rare_expected = rare_seen + counts[outcome], rare_expected + mean
    if rare_expected > 0:
        cells.append((rare_seen, rare_expected))
    assert len(cells) > 1, "everything was pooled into one cell: nothing is tested"
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    return float(chi2.sf(statistic, len(cells) - 1))
