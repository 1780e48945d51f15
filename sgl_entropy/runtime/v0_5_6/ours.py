"""When our behaviour applies: under our flags or the CPU engine, and never otherwise."""

from __future__ import annotations

import os

from sgl_entropy.runtime.v0_5_6.cpu.standins import cpu_engine_asked


def active() -> bool:
    """Whether this server runs EDSD, an entropy mode or the CPU engine.

    SGL_ENTROPY_COUNTERS=1 asks for EAGLE too.

    With none of these a patched SGLang must behave exactly as an unpatched one.
    """
    from sglang.srt.server_args import get_global_server_args

    if cpu_engine_asked() or os.getenv("SGL_ENTROPY_COUNTERS") == "1":
        return True
    args = get_global_server_args()
    return (
        args.speculative_algorithm == "EDSD" or args.easd is not None or args.draft_stop is not None
    )


def may_sleep(waiting: list[object]) -> bool:
    """Whether an idle scheduler may sleep (``--sleep-on-idle``).

    Upstream's scheduler sleeps for up to a second even if requests wait: when all running ones end
    at once, its loop is idle once before it admits the next.
    """
    return not waiting or not active()
