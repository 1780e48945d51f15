"""Run another load tester as it is, and note what its client cannot say of itself.

    python -m sgl_entropy_bench.figures.peer --notes FILE [--busy SHARE] MODULE ARGUMENT...

runs MODULE as its own command would. Noted as JSON are the gaps that it drew between requests
(numpy's exponential draws, in order), which are its schedule, and the processor time of its event
loop. With ``--busy`` a task takes that share of the loop's time in pieces of 2 ms, as parsing
streams does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import runpy
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from sgl_entropy_bench.load.busy import keep_busy


def main() -> None:
    """Entry point of the module."""
    import numpy as np

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--busy", type=float, default=0.0)
    parser.add_argument("module")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    gaps: list[float] = []
    cpu: list[float] = []
    draw, run = np.random.exponential, asyncio.run

    def drawn(*given: Any, **named: Any) -> Any:
        value = draw(*given, **named)
        gaps.append(float(value))
        return value

    async def beside(work: Coroutine[Any, Any, Any]) -> Any:
        other = asyncio.create_task(keep_busy(args.busy)) if args.busy else None
        began = time.process_time()
        try:
            return await work
        finally:
            cpu.append(time.process_time() - began)
            if other is not None:
                other.cancel()

    def run_noted(work: Coroutine[Any, Any, Any], **named: Any) -> Any:
        return run(beside(work), **named)

    np.random.exponential = drawn
    asyncio.run = run_noted  # type: ignore[assignment]
    sys.argv = [args.module, *args.words]
    try:
        runpy.run_module(args.module, run_name="__main__", alter_sys=True)
    finally:
        args.notes.write_text(json.dumps({"gaps": gaps, "cpu_s": cpu}))


if __name__ == "__main__":
    main()
