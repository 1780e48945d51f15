"""The cost of what EASD computes at a position, against the softmax that sampling needs anyway
(ours).

Logits of two vocabularies: the small target's, and the largest of the papers' models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.intervals import quartiles
from sgl_entropy.base.tables import markdown_table
from sgl_entropy.entropy import shannon_entropy
from sgl_entropy.verify.easd import uncertainty
from sgl_entropy.verify.rule import EasdRule

VOCABULARIES = (49152, 151936)
# A decode step, and the verifications of batches 1 and 8 in chains of depth 4.
ROWS = (1, 5, 40)
RULE = EasdRule()
SOFTMAX = "softmax"
WAYS: Mapping[str, Callable[[Tensor], Any]] = {
    SOFTMAX: lambda logits: torch.softmax(logits, dim=-1),
    "entropy": shannon_entropy,
    f"top-{RULE.top_n}": lambda logits: logits.topk(RULE.top_n, dim=-1),
    "both": lambda logits: uncertainty(logits, RULE),
}


def measure(
    tries: int = 101, vocabularies: tuple[int, ...] = VOCABULARIES, rows: tuple[int, ...] = ROWS
) -> dict[str, Any]:
    """Milliseconds of each way by vocabulary and rows, taken in turn.

    Args:
        tries: of each way, after one that is not counted.

    Returns:
        ``tries`` and ``cases``: ``vocabulary``, ``rows``, and by way ``median_ms``,
        ``quartiles_ms`` and ``over_softmax``, the ratio of the medians.
    """
    generator = torch.Generator().manual_seed(0)
    cases = []
    for vocabulary in vocabularies:
        for count in rows:
            logits = 3 * torch.randn(count, vocabulary, generator=generator)
            cases.append({"vocabulary": vocabulary, "rows": count, "ways": _times(logits, tries)})
    return {"tries": tries, "threads": torch.get_num_threads(), "cases": cases}


def _times(logits: Tensor, tries: int) -> dict[str, dict[str, Any]]:
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(tries + 1):
        for name, way in WAYS.items():
            began = time.perf_counter()
            way(logits)
            if number:
                taken[name].append(1e3 * (time.perf_counter() - began))
    base = quartiles(taken[SOFTMAX])[1]
    return {name: _summary(values, base) for name, values in taken.items()}


def _summary(values: list[float], base: float) -> dict[str, Any]:
    low, median, high = quartiles(values)
    return {
        "median_ms": round(median, 4),
        "quartiles_ms": [round(low, 4), round(high, 4)],
        "over_softmax": round(median / base, 3),
    }


def page(data: Mapping[str, Any]) -> str:
    """The figure as Markdown."""
    rows = []
    for case in data["cases"]:
        cells = [f"{case['vocabulary']:,}", str(case["rows"])]
        for way in case["ways"].values():
            low, high = way["quartiles_ms"]
            times = f"{way['median_ms']:.3f} ({low:.3f}-{high:.3f})"
            cells.append(f"{times} [{way['over_softmax']:.2f}]")
        rows.append(cells)
    return "\n\n".join(
        [
            "# What entropy and the likeliest tokens cost",
            "Milliseconds, median (quartiles), for float32 logits on a CPU with "
            f"{data['threads']} thread(s), {data['tries']} times each and taken in turn; in "
            "brackets, the ratio to a plain softmax of the same logits. both: as EASD computes "
            "them at a checked position, from the drafter's logits and from the target's.",
            markdown_table(["vocabulary", "rows", *data["cases"][0]["ways"]], rows),
        ]
    )
