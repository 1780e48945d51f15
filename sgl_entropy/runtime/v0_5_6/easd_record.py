"""What the walk through one request's verified draft met: counts for the counters, and a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgl_entropy.runtime.v0_5_6 import draft_stats
from sgl_entropy.runtime.v0_5_6.easd import Cycle
from sgl_entropy.runtime.v0_5_6.mode_time import timed


@timed
def record(draft: Any, index: int, path: list[int], emitted: int) -> dict[str, Any] | None:
    """What the walk of one request met.

    Args:
        path: the accepted nodes of the request, root first, as flat numbers.
        emitted: tokens that it added to the output; fewer than nodes where it ended inside.

    Returns:
        ``checks``, ``fires``, ``relaxed``, ``entropy_sum`` and ``entropies`` (nats, at positions
        whose entropy was computed), ``trace`` (a dict, or None); None without an entropy mode.
    """
    cycle: Cycle | None = getattr(draft, "sgl_entropy_cycle", None)
    if cycle is None:
        return None
    met = [node - index * draft.draft_token_num for node in path[:emitted]]
    fire, relaxed = cycle.fire[index].tolist(), cycle.relaxed[index].tolist()
    child, entropy = cycle.child[index].tolist(), cycle.entropy[index].tolist()
    checked = 0
    if cycle.rules[index] is not None:
        for place, node in enumerate(met):
            taken = place + 1 < len(path) or fire[node]
            checked += child[node] >= 0 and (taken or not cycle.mode.rule.accepted_only)
    fires = [place for place, node in enumerate(met) if fire[node]]
    known = [entropy[node] for node in met if entropy[node] == entropy[node]]
    found = {
        "checks": int(checked),
        "fires": len(fires),
        "relaxed": sum(relaxed[node] for node in met),
        "entropy_sum": sum(known),
        "entropies": len(known),
        "trace": None,
    }
    if cycle.traced[index]:
        found["trace"] = {
            **_statistics(cycle, draft, index),
            "accepted": min(len(path) - 1, emitted),
            "emitted": emitted,
            "checked": int(checked),
            "fired": fires[0] if fires else None,
        }
    return found


def _statistics(cycle: Cycle, draft: Any, index: int) -> dict[str, Any]:
    """Of a traced chain: entries behind the verified tokens are None."""
    stats = draft_stats.of_nodes(draft)
    assert stats is not None
    path = draft_stats.paths(draft)[index]
    # Fillers of a chain that ended early have no probability.
    verified = int(((draft.retrive_index[index, 1:] >= 0) & (path > 0)).sum())
    drafted = draft.draft_token_num - 1

    def column(values: Tensor, known: int, length: int) -> list[float | None]:
        return [round(v, 6) for v in values[:known].tolist()] + [None] * (length - known)

    before = torch.cat([path.new_ones(1), path[:-1]])
    return {
        "draft_entropy": column(stats.nats[index], verified, drafted),
        "draft_prob": column(path / before.clamp_min(1e-30), verified, drafted),
        "overlap": column(cycle.overlap[index], verified, drafted),
        "target_prob": column(cycle.token_prob[index], verified, drafted),
        "target_entropy": column(cycle.entropy[index], verified + 1, drafted + 1),
        "verified": verified,
    }
