"""What the rows of a matrix product cost on a CPU (ours)."""

from __future__ import annotations

# Up to this many rows a product takes about the time of one; then it grows in such steps.
STEP = 8


def paid_rows(rows: int) -> int:
    """``rows`` rounded up to the count whose time they take."""
    return -(-rows // STEP) * STEP
