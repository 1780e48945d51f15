"""Takes time from the event loop, to measure how a client behaves when it is busy."""

from __future__ import annotations

import asyncio
import time

PIECE_S = 0.002


async def keep_busy(share: float) -> None:
    """Take ``share`` of the event loop's time, in pieces; never returns."""
    while True:
        until = time.perf_counter() + PIECE_S
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(PIECE_S * (1 - share) / share)
