"""The answer file: one JSON line for each answer, written by a server or by this machine.

The file grows by whole lines; a line that a crash cut off is dropped on reading, so that a stage
that was killed goes on after the last whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy.train.prompts.order import Prompt

# The number of an answer at the n-th temperature is its prompt's plus n times this: a multiple of
# every sensible ``fit.validation_every``, so that a prompt is held out of all rounds or of none.
ROUND = 1_000_000


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

    def line(self) -> str:
        """The answer file's line, which ``read_answers`` reads."""
        row: dict[str, object] = {
            "prompt_id": self.prompt_id,
            "prompt_length": self.prompt_length,
            "tokens": self.tokens,
        }
        if self.temperature:
            row["temperature"] = self.temperature
        return json.dumps(row) + "\n"


def read_answers(path: Path) -> list[Answered]:
    """The whole lines of an answer file; a last line that was cut off is left out.

    Raises:
        ValueError: a line that is no answer; names it.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    answers = []
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
        answers.append(answered)
    return answers


def refuse_other_answers(
    path: Path, answers: Sequence[Answered], prompts: Sequence[Prompt]
) -> None:
    """
    Args:
        path: of the answers, for the message.

    Raises:
        ValueError: an answer's prompt is not the one with its number.
    """
    asked = {prompt.prompt_id: prompt.tokens for prompt in prompts}
    for one in answers:
        tokens = asked.get(one.prompt_id, asked.get(one.prompt_id % ROUND))
        if tokens is not None and one.tokens[: one.prompt_length] != tokens:
            raise ValueError(
                f"{path}: the answer to prompt {one.prompt_id} belongs to another prompt than the "
                "prompt file has under this number: delete the answers, or name another work "
                "folder (--work)"
            )


def drop_cut_line(path: Path) -> None:
    """Cut the file after its last whole line, so that the next one starts on its own."""
    if path.is_file():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


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
