"""Answers from a running server: many requests at once, each answer written as soon as it comes.

The thread that received an answer writes it. An interrupt reaches only the main thread, so every
finished answer is in the file by then; requests under way are left to their daemon threads.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from sgl_entropy.base.disk import naming_full_disk
from sgl_entropy.train.answers.file import Answered, drop_cut_line, read_answers
from sgl_entropy.train.machine.token_progress import TokenProgress
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.prompts.texts import read_jsonl

Ask = Callable[[Prompt], Sequence[int]]
Report = Callable[[str], None]
# So many refusals at the start of a run mean that the server is wrong, not a prompt.
_MOST_REFUSED = 8
# Between two looks at how far it is.
_LOOK_S = 1.0
# Time for a thread to write an answer that has just come.
_GRACE_S = 0.5


class ServerRefused(Exception):
    """The server will never answer this prompt (too long for it, say)."""


def refusals_of(path: Path) -> Path:
    """The file that notes refused prompts, beside the answers ``path``."""
    return path.with_name("refused.jsonl")


def collect_answers(
    path: Path,
    prompts: Sequence[Prompt],
    ask: Ask,
    wanted_tokens: int,
    concurrency: int,
    report: Report,
) -> int:
    """Ask for answers until ``wanted_tokens`` are in the file or the prompts run out.

    Args:
        path: the answer file; prompts that it holds are not asked again, nor are those that
            ``refusals_of`` it notes.
        ask: returns the answer's token ids; called from several threads. ``ServerRefused`` leaves
            the prompt out; any other error ends the stage and keeps all answers so far.
        concurrency: requests at once.

    Returns:
        Answer tokens in the file.

    Raises:
        RuntimeError: the first prompts of this run are all refused.
        OSError: the disk is full, or the server is gone.
    """
    refusals = refusals_of(path)
    drop_cut_line(path)
    drop_cut_line(refusals)
    before = read_answers(path)
    done, tokens = {one.prompt_id for one in before}, sum(one.answer_length for one in before)
    if refusals.is_file() and (refused := {row["prompt_id"] for row in read_jsonl(refusals)}):
        done |= refused
        report(f"{len(refused)} prompts were refused before; delete {refusals} to ask them again")
    todo = [prompt for prompt in prompts if prompt.prompt_id not in done]
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        run = _Run(file, refusals, iter(todo), ask, tokens, wanted_tokens, report)
        threads = [
            threading.Thread(target=run.work, daemon=True)
            for _ in range(min(concurrency, len(todo)))
        ]
        progress = TokenProgress(tokens, wanted_tokens)
        try:
            run.start(threads)
            over = False
            while not over:
                over = run.over.wait(_LOOK_S)
                progress.update(run.tokens)
        finally:
            run.stop()
            progress.close()
    if run.error is not None:
        raise run.error
    return run.tokens


class _Run:
    """What the threads share; everything but ``ask`` happens under the lock.

    Attributes:
        tokens: in the answer file.
        error: what ended the run, if anything did.
        over: set when nothing is left to wait for.
    """

    def __init__(
        self,
        file: TextIO,
        refusals: Path,
        todo: Iterator[Prompt],
        ask: Ask,
        tokens: int,
        wanted: int,
        report: Report,
    ) -> None:
        self.tokens, self.over = tokens, threading.Event()
        self.error: BaseException | None = None
        self._file, self._refusals, self._todo, self._ask = file, refusals, todo, ask
        self._wanted, self._report = wanted, report
        self._lock, self._idle, self._working = threading.Lock(), threading.Event(), 0
        self._asking, self._closed = True, False
        self._answered = self._refused = 0

    def start(self, threads: Sequence[threading.Thread]) -> None:
        self._working = len(threads)
        if not threads:
            self._idle.set()
            self.over.set()
        for thread in threads:
            thread.start()

    def stop(self) -> None:
        """Send no more requests and, after a moment for the last answers, write no more."""
        with self._lock:
            self._asking = False
        self._idle.wait(_GRACE_S)
        with self._lock:
            self._closed = True

    def work(self) -> None:
        """Ask until there is nothing more to ask for."""
        try:
            while (prompt := self._next()) is not None:
                try:
                    self._keep(prompt, self._ask(prompt))
                except ServerRefused as error:
                    self._leave_out(prompt, error)
        except BaseException as error:
            with self._lock:
                if self._asking:
                    self._asking, self.error = False, error
                    self.over.set()
        finally:
            with self._lock:
                self._working -= 1
                if not self._working:
                    self._idle.set()
                    self.over.set()

    def _next(self) -> Prompt | None:
        with self._lock:
            if not self._asking or self.tokens >= self._wanted:
                return None
            return next(self._todo, None)

    def _keep(self, prompt: Prompt, answer: Sequence[int]) -> None:
        answered = Answered(prompt.prompt_id, len(prompt.tokens), (*prompt.tokens, *answer))
        with self._lock:
            if self._closed:
                return
            with naming_full_disk(Path(self._file.name)):
                self._file.write(answered.line())
                self._file.flush()
            self._answered += 1
            self.tokens += len(answer)

    def _leave_out(self, prompt: Prompt, error: ServerRefused) -> None:
        with self._lock:
            if self._closed:
                return
            self._report(f"prompt {prompt.prompt_id} left out: {error}")
            row = {"prompt_id": prompt.prompt_id, "reason": str(error)}
            with naming_full_disk(self._refusals), self._refusals.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self._refused += 1
            if not self._answered and self._refused >= _MOST_REFUSED:
                raise RuntimeError(
                    f"the first {self._refused} prompts were all refused: {error}\nanother run "
                    f"goes on after them; to ask them again, delete {self._refusals}"
                )
