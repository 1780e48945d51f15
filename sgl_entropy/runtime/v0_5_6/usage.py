"""What the OpenAI routes say about an entropy mode: ``usage.completion_tokens_details``.

Upstream's usage has no field for it. Without a mode nothing is added, so responses stay as they
are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_COUNTS = ("easd_checks", "easd_fires", "easd_relaxed")


def extend(usage: Any, meta_infos: Iterable[Mapping[str, Any]]) -> Any:
    """Add the counts of all choices to a ``UsageInfo``; returns it."""
    checked = [meta for meta in meta_infos if "easd_checks" in meta]
    if checked:
        usage.completion_tokens_details = {
            name: sum(meta[name] for meta in checked) for name in _COUNTS
        }
    return usage
