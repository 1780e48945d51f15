"""Answers that this machine writes, one line an answer, at each of some temperatures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sgl_entropy.base.disk import naming_full_disk
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.decode import Decoding, decode
from sgl_entropy.train.answers.file import ROUND, drop_cut_line, read_answers
from sgl_entropy.train.prompts.order import Prompt

Report = Callable[[str], None]
_SECONDS = 10


def write_answers(
    path: Path,
    target: PlainTarget,
    prompts: Sequence[Prompt],
    temperatures: Sequence[float],
    wanted_tokens: int,
    given: Decoding,
    report: Report,
) -> int:
    """Answer until ``wanted_tokens`` are in the file or every prompt has an answer at every
    temperature. Answers that the file holds are not written again; each line is written when its
    answer ends.

    Returns:
        Answer tokens in the file.
    """
    drop_cut_line(path)
    held = read_answers(path)
    done, tokens = {one.prompt_id for one in held}, sum(one.answer_length for one in held)
    began = told = time.monotonic()
    before = tokens
    with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
        for turn, temperature in enumerate(temperatures):
            todo = [Prompt(turn * ROUND + p.prompt_id, p.tokens) for p in prompts]
            todo = [prompt for prompt in todo if prompt.prompt_id not in done]
            extra = {"temperature": temperature} if temperature else {}

            def take(prompt: Prompt, written: list[int]) -> bool:
                nonlocal tokens, told
                start = len(prompt.tokens)
                row = {"prompt_id": prompt.prompt_id, "prompt_length": start, "tokens": written}
                file.write(json.dumps(row | extra) + "\n")  # noqa: B023 - called in this turn
                tokens += len(written) - start
                if time.monotonic() - told > _SECONDS:
                    told = time.monotonic()
                    file.flush()
                    rate = (tokens - before) / (told - began)
                    report(f"{tokens} of {wanted_tokens} answer tokens, {rate:.0f} tokens/s")
                return tokens < wanted_tokens

            if todo and tokens < wanted_tokens:
                decode(target, todo, replace(given, temperature=temperature, seed=turn), take)
    return tokens
