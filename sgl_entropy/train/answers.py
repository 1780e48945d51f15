"""Answers that something else than this process writes: a running server, one line an answer.

The file grows by whole lines; what a crash cut off is dropped when it is read, so that a stage
that was killed goes on after the last whole answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.train.generate import Prompt

Ask = Callable[[Prompt], Sequence[int]]
Report = Callable[[str], None]
# An answer at the n-th temperature has its prompt's number and n times this: a multiple of every
# sensible ``fit.validation_every``, so that a prompt is held out of all rounds or of none.
ROUND = 1_000_000
# Refusals in a row, from the start or later, that mean the server and not a prompt.
_MOST_REFUSED = 8


class Refused(Exception):
    """The server will never answer this prompt (too long for it, say)."""


@dataclass(frozen=True)
class Answered:
    """A prompt with its answer: ``tokens`` holds both, the answer from ``prompt_length`` on.
    ``temperature`` is what it was sampled with; 0 = greedy."""

    prompt_id: int
    prompt_length: int
    tokens: tuple[int, ...]
    temperature: float = 0.0

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length


def read_answers(path: Path) -> list[Answered]:
    """The whole lines of an answer file; a last line that was cut off is left out.

    Raises:
        ValueError: a line that is no answer; names it.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    held = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            row = json.loads(line)
            answered = Answered(
                row["prompt_id"],
                row["prompt_length"],
                tuple(row["tokens"]),
                float(row.get("temperature", 0.0)),
            )
            if not 0 < answered.prompt_length <= len(answered.tokens):
                raise ValueError(f"prompt_length {answered.prompt_length}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no answer: {error!r}") from None
        held.append(answered)
    return held


def refuse_other_answers(
    path: Path, answers: Sequence[Answered], prompts: Sequence[Prompt]
) -> None:
    """
    Args:
        path: of the answers, for the message.

    Raises:
        ValueError: an answer to another prompt than that of its number.
    """
    asked = {prompt.prompt_id: prompt.tokens for prompt in prompts}
    for one in answers:
        tokens = asked.get(one.prompt_id % ROUND)
        if tokens is not None and one.tokens[: one.prompt_length] != tokens:
            raise ValueError(
                f"{path}: the answer to prompt {one.prompt_id} is one to another prompt than the "
                "prompt file has under this number: delete the answers, or name another work "
                "folder (--work)"
            )


def drop_cut_line(path: Path) -> None:
    """Cut the file behind its last whole line, so that the next one starts on its own."""
    if path.is_file():
        held = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(held.rfind(b"\n") + 1)


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
        path: the answer file; prompts that it holds are not asked again.
        ask: from several threads: the answer's token ids. ``Refused`` leaves the prompt out; any
            other error ends the stage, with what has been answered kept.
        concurrency: requests at once.

    Returns:
        Answer tokens in the file.

    Raises:
        RuntimeError: the first prompts are all refused.
    """
    drop_cut_line(path)
    held = read_answers(path)
    done, tokens = {one.prompt_id for one in held}, sum(one.answer_length for one in held)
    queue = iter([prompt for prompt in prompts if prompt.prompt_id not in done])
    began, noted, before, refused, answered = time.monotonic(), 0.0, tokens, 0, 0
    with (
        path.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(max_workers=concurrency) as pool,
    ):
        waiting: dict[Future[Sequence[int]], Prompt] = {}

        def fill() -> None:
            while tokens < wanted_tokens and len(waiting) < concurrency:
                prompt = next(queue, None)
                if prompt is None:
                    return
                waiting[pool.submit(ask, prompt)] = prompt

        fill()
        try:
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    prompt = waiting.pop(future)
                    try:
                        answer = future.result()
                    except Refused as error:
                        refused += 1
                        report(f"prompt {prompt.prompt_id} left out: {error}")
                        if not answered and refused >= _MOST_REFUSED:
                            raise RuntimeError(
                                f"the first {refused} prompts were all refused: {error}"
                            ) from None
                        continue
                    answered += 1
                    tokens += len(answer)
                    row = {
                        "prompt_id": prompt.prompt_id,
                        "prompt_length": len(prompt.tokens),
                        "tokens": [*prompt.tokens, *answer],
                    }
                    file.write(json.dumps(row) + "\n")
                file.flush()
                fill()
                if time.monotonic() - noted > 10 or not waiting:
                    noted = time.monotonic()
                    rate = (tokens - before) / (noted - began)
                    report(f"{tokens} of {wanted_tokens} answer tokens, {rate:.0f} tokens/s")
        finally:
            for future in waiting:
                future.cancel()
    return tokens


def in_batches(answers: Sequence[Answered], rows: int) -> Iterator[list[Answered]]:
    """Batches of neighbours, of at most ``rows`` padded rows each (or of one sequence)."""
    batch: list[Answered] = []
    longest = 0
    for one in answers:
        longest = max(longest, len(one.tokens))
        if batch and longest * (len(batch) + 1) > rows:
            yield batch
            batch, longest = [], len(one.tokens)
        batch.append(one)
    if batch:
        yield batch
