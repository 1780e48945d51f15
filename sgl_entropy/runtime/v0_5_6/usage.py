"""What the OpenAI routes tell of an entropy mode: ``usage.completion_tokens_details``.

Upstream's usage has no place for it. Without a mode nothing is added, so that responses stay as
they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_COUNTS = ("easd_checks", "easd_fires", "easd_relaxed")


def extend(usage: Any, meta_infos: Iterable[Mapping[str, Any]]) -> Any:
    """Add the counts of all choices to a ``UsageInfo``; returns it."""
    held = [meta for meta in meta_infos if "easd_checks" in meta]
    if held:
        usage.completion_tokens_details = {
            name: sum(meta[name] for meta in held) for name in _COUNTS
        }
    return usage
