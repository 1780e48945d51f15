"""Run another load tester as it is, and note what its client cannot say of itself.

    python -m sgl_entropy_bench.figures.peer --notes FILE [--busy SHARE] MODULE ARGUMENT...

runs MODULE as its own command would. Noted as JSON are its package's version, the gaps that it drew
between requests (numpy's exponential or gamma draws, in order), each with the process's processor
time at the draw, and that time where the event loop ended. With ``--busy`` a task takes that share
of the loop's time in pieces of 2 ms, as parsing streams does.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import runpy
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sgl_entropy_bench.load.run.busy import keep_busy


def main() -> None:
    """Entry point of the module."""
    import numpy as np

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--busy", type=float, default=0.0)
    parser.add_argument("module")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    draws: list[tuple[float, float]] = []
    ended = [0.0]
    run = asyncio.run

    def noted(draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*given: Any, **named: Any) -> Any:
            value = draw(*given, **named)
            if np.ndim(value) == 0:
                draws.append((float(value), time.process_time()))
            return value

        return drawn

    async def beside(work: Coroutine[Any, Any, Any]) -> Any:
        other = asyncio.create_task(keep_busy(args.busy)) if args.busy else None
        try:
            return await work
        finally:
            ended[0] = time.process_time()
            if other is not None:
                other.cancel()

    def run_noted(work: Coroutine[Any, Any, Any], **named: Any) -> Any:
        return run(beside(work), **named)

    np.random.exponential = noted(np.random.exponential)
    np.random.gamma = noted(np.random.gamma)
    asyncio.run = run_noted  # type: ignore[assignment]
    sys.argv = [args.module, *args.words]
    try:
        runpy.run_module(args.module, run_name="__main__", alter_sys=True)
    finally:
        notes = {"version": version(args.module), "draws": draws, "cpu_s": ended[0]}
        args.notes.write_text(json.dumps(notes))


def version(module: str) -> str:
    """That of the package which brings a module; "" where it has none."""
    try:
        return importlib.metadata.version(module.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
