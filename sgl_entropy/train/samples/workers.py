"""The processes that fill a store: started, watched, and their errors reported once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sgl_entropy.train.machine.token_progress import TokenProgress
from sgl_entropy.train.samples.store import Store

Report = Callable[[str], None]


def run_processes(
    run: Callable[[Any], None],
    plans: Sequence[Any],
    folder: Path,
    stored: int,
    wanted: int,
    report: Report,
) -> None:
    """Run every plan in a process of its own, show progress, and report what the store holds.

    Args:
        run: of a plan; picklable.
        folder: the store.
        stored: answer tokens that it holds already, of ``wanted``.

    Raises:
        RuntimeError: a process failed; says with what. The others finished what they had to do.
    """
    # One thread a process, also in what the workers import.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    problems = context.SimpleQueue()
    workers = [context.Process(target=_guarded, args=(run, plan, problems)) for plan in plans]
    for worker in workers:
        worker.start()
    _watch(workers, folder, TokenProgress(stored, wanted))
    said: list[str] = []
    while not problems.empty():
        said.append(problems.get())
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        codes = f"generation workers failed with exit codes {failed}; run it again"
        raise RuntimeError("\n".join(dict.fromkeys(said)) or codes)
    report(size_line(Store(folder)))


def stored_answers(folder: Path) -> tuple[set[int], int]:
    """(prompt ids, answer tokens) of the finished shards; damaged ones are refused."""
    if not any(folder.glob("*.safetensors")):
        return set(), 0
    store = Store(folder)
    return {entry.prompt_id for entry in store.entries}, store.answer_tokens()


def _guarded(run: Callable[[Any], None], plan: Any, problems: Any) -> None:
    """An error that explains itself goes to the parent; any other keeps its traceback."""
    try:
        run(plan)
    except (ValueError, OSError, RuntimeError) as error:
        problems.put(str(error))
        sys.exit(1)


def _watch(workers: list[Any], folder: Path, progress: TokenProgress) -> None:
    try:
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(timeout=15 / len(workers))
            progress.update(stored_answers(folder)[1])
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()  # a worker writes what is finished, then leaves
        for worker in workers:
            worker.join()
        raise
    finally:
        progress.close()


def size_line(store: Store) -> str:
    """What a store holds, and how many bytes it takes, for people."""
    tokens = sum(entry.length - 1 for entry in store.entries)
    size = store.bytes()
    return (
        f"{len(store.entries)} sequences, {store.answer_tokens()} answer tokens; {size / 1e9:.2f} "
        f"GB, {size / tokens:.0f} bytes a token of prompt and answer, of them "
        f"{2 * len(store.tap_layers) * store.width} for {len(store.tap_layers)} layers"
    )
