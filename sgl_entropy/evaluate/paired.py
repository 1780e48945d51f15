"""One drafter's acceptance against another's on the same prompts, from two reports of ``drafter
eval``. (Ours.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What two reports must have in common: anything else, and other answers are compared.
_SAME = ("texts", "max_prompts", "max_prompt_tokens", "max_new_tokens", "depth")


def read_earlier(path: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The report of another drafter that ``now``, a report or its beginning, is compared with.

    Raises:
        ValueError: no whole report of ``drafter eval``, or one of other prompts, sizes or target.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"--against {path}: {error}") from None
    if not isinstance(earlier, dict) or "per_prompt" not in earlier:
        raise ValueError(
            f"--against {path}: no report of `drafter eval --json` that holds its prompts"
        )
    if "partial" in earlier:
        raise ValueError(f"--against {path}: it was interrupted; measure that drafter again")
    other = [key for key in _SAME if earlier.get(key) != now[key]]
    if not _same_target(earlier, now):
        other.append("target")
    if other:
        raise ValueError(f"--against {path}: it is of other {', '.join(other)}")
    return earlier


def _same_target(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """By the targets' identities; where a report is older than these, by the folders' names."""
    one, two = (r["provenance"].get("inputs", {}).get("target") for r in (earlier, now))
    if one is None or two is None:  # measured from a server
        return one is two and bool(earlier["target"] == now["target"])
    key = "identity" if "identity" in one and "identity" in two else "folder"
    return bool(one[key] == two[key])


def paired_ratio(
    ours: Sequence[Sequence[Any]],
    theirs: Sequence[Sequence[Any]],
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Any]:
    """tau of one drafter over another's, each the mean of its groups' pooled taus.

    Args:
        ours, theirs: (group, tokens, cycles) of each prompt, in the same order.

    Returns:
        ``ratio``, its ``interval`` (95 %, from a bootstrap of each group's prompts, the same for
        both), and ``differs``: the interval excludes 1.

    Raises:
        ValueError: of other prompts.
    """
    groups = [one[0] for one in ours]
    if [one[0] for one in theirs] != groups:
        raise ValueError("the two drafters were judged on other prompts")
    chance = torch.Generator().manual_seed(seed)
    counts = [
        torch.tensor([one[1:] for one in side], dtype=torch.float64) for side in (ours, theirs)
    ]
    means: list[list[Tensor]] = [[], []]
    whole: list[list[Tensor]] = [[], []]
    for name in dict.fromkeys(groups):
        at = torch.tensor([i for i, group in enumerate(groups) if group == name])
        drawn = at[torch.randint(len(at), (resamples, len(at)), generator=chance)]
        for side, held in enumerate(counts):
            means[side].append(_tau(held[drawn].sum(1)))
            whole[side].append(_tau(held[at].sum(0)))
    ratio = float(torch.stack(whole[0]).mean() / torch.stack(whole[1]).mean())
    found = torch.stack(means[0]).mean(0) / torch.stack(means[1]).mean(0)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {
        "ratio": round(ratio, 4),
        "interval": [round(low, 4), round(high, 4)],
        "differs": not low <= 1.0 <= high,
    }


def _tau(sums: Tensor) -> Tensor:
    """Of [..., (tokens, cycles)]; a group without a cycle counts as one, as no draft helped."""
    tokens, cycles = sums.unbind(-1)
    return torch.where(cycles > 0, tokens / cycles.clamp_min(1), torch.ones_like(tokens))
