"""Answers that this machine writes, at one temperature after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sgl_entropy.base.disk import naming_full_disk
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.decode import Decoding
from sgl_entropy.train.answers.file import ROUND, drop_cut_line, read_answers
from sgl_entropy.train.answers.slots import answer_all
from sgl_entropy.train.machine.token_progress import TokenProgress
from sgl_entropy.train.prompts.order import Prompt, in_length_blocks, to_begin


def write_answers(
    path: Path,
    target: PlainTarget,
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    wanted_tokens: int,
    given: Decoding,
) -> int:
    """Answer until ``wanted_tokens`` are in the file or every prompt has an answer at every
    temperature. Answers that the file holds are not written again; each line is written when its
    answer ends.

    Returns:
        Answer tokens in the file.
    """
    drop_cut_line(path)
    before = read_answers(path)
    done, ended = {one.prompt_id for one in before}, len(before)
    tokens = stored = sum(one.answer_length for one in before)
    progress = TokenProgress(stored, wanted_tokens)

    def more(written: list[int]) -> int:
        return to_begin(wanted_tokens, given.max_new_tokens, tokens, ended, written)

    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        for turn, temperature in enumerate(temperatures):
            todo = [Prompt(turn * ROUND + p.prompt_id, p.tokens) for p in prompts]
            todo = [prompt for prompt in todo if prompt.prompt_id not in done]
            if not todo or tokens >= wanted_tokens:
                continue
            decoding = replace(given, temperature=temperature, seed=turn)
            slots = decoding.slots_for(target, todo)
            queue = in_length_blocks(todo, 4 * len(slots))
            for new in answer_all(slots, queue, decoding.pace(target.device), more):
                file.writelines(one.line() for one in new)
                tokens, ended = tokens + sum(one.answer_length for one in new), ended + len(new)
                file.flush()
                progress.update(tokens)
    progress.close()
    return tokens
