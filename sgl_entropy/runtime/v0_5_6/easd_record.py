"""What the walk through one request's verified draft met: counts for the counters, and a trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from sgl_entropy.runtime.v0_5_6 import draft_stats
from sgl_entropy.runtime.v0_5_6.easd_cycle import Cycle
from sgl_entropy.serving.mode_time import timed


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
    met, asked = path[:emitted], cycle.asked[index]
    checked = 0
    if asked.rule is not None:
        for place, node in enumerate(met):
            taken = place + 1 < len(path) or node in cycle.fire
            checked += cycle.child[node] >= 0 and (taken or not asked.rule.accepted_only)
    fires = [place for place, node in enumerate(met) if node in cycle.fire]
    known = [nats for node in met if not math.isnan(nats := cycle.entropy.get(node, math.nan))]
    found: dict[str, Any] = {
        "checks": int(checked),
        "fires": len(fires),
        "relaxed": sum(node in cycle.relaxed for node in met),
        "entropy_sum": sum(known),
        "entropies": len(known),
        "trace": None,
    }
    if asked.traced:
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
    path = stats.paths()[index]
    # Fillers of a chain that ended early have no probability.
    verified = int(((draft.retrive_index[index, 1:] >= 0) & (path > 0)).sum())
    drafted = draft.draft_token_num - 1
    below = range(index * drafted, index * drafted + verified)
    nodes = range(index * cycle.nodes, index * cycle.nodes + verified)

    def column(values: Iterable[float], length: int = drafted) -> list[float | None]:
        known = [round(value, 6) for value in values]
        return [*known, *[None] * (length - len(known))]

    before = torch.cat([path.new_ones(1), path[:-1]])
    return {
        "draft_entropy": column(stats.nats(below) if verified else ()),
        "draft_prob": column((path / before.clamp_min(1e-30))[:verified].tolist()),
        "overlap": column(cycle.overlap[node] for node in nodes),
        "target_prob": column(cycle.token_prob[node] for node in nodes),
        "target_entropy": column(
            (cycle.entropy[node] for node in (*nodes, nodes.stop)), drafted + 1
        ),
        "verified": verified,
    }
