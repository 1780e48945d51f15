"""Scores the answers of a finished evaluation anew, from their stored texts; nothing is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sgl_entropy.base.json_file import read_object
from sgl_entropy.base.provenance import provenance
from sgl_entropy.base.typed_json import from_json
from sgl_entropy_bench.quality.answers import read_answers, write_answers
from sgl_entropy_bench.quality.eval_report import EvalReport, notes, scores
from sgl_entropy_bench.quality.tasks import Question, Task, Tools

# Arms with arguments and notes, no answers.
_MOST_BYTES = 1 << 24


def rescore(
    folder: Path, task: Task, questions: Sequence[Question], tools: Tools
) -> tuple[EvalReport, int]:
    """Judge every answer of ``folder`` again and write ``answers.jsonl``.

    Args:
        questions: all of the task's, with the instruction that the answers were given under.

    Returns:
        the new result (servers, settings and the answers' provenance are the old one's), and how
        many answers have become right or wrong.

    Raises:
        ValueError: the folder holds no finished result of this task, or answers to other questions.
        OSError: not readable, or not writable.
    """
    try:
        old = from_json(EvalReport, read_object(folder / "result.json", limit=_MOST_BYTES))
    except ValueError as error:
        raise ValueError(f"--rescore {folder}: no result of `eval`: {error}") from None
    if old.task != task.name:
        raise ValueError(f"--rescore {folder}: holds answers of {old.task}, not of {task.name}")
    before = read_answers(folder / "answers.jsonl")
    stored = {arm.arm: sum(answer.arm == arm.arm for answer in before.values()) for arm in old.arms}
    lost = [arm.arm for arm in old.arms if stored[arm.arm] < arm.answers]
    if lost:
        raise ValueError(
            f"--rescore {folder}: result.json counts answers of {', '.join(lost)} that "
            "answers.jsonl lacks; rescoring would lose them"
        )
    known = {question.id: question for question in questions}
    unknown = sorted({answer.question for answer in before.values()} - known.keys())
    if unknown or old.settings.example_prompt not in {question.text for question in questions}:
        raise ValueError(
            f"--rescore {folder}: holds answers to questions that --task lacks"
            + (f", as {unknown[0]}" if unknown else "; was there another --instruction?")
        )

    after = {
        place: answer if answer.error else task.scored(answer, known[answer.question], tools)
        for place, answer in before.items()
    }
    asked = {arm.arm: (arm.custom_params, arm.temperature) for arm in old.arms}
    arms, pairs = scores(after, questions, old.settings.samples, asked, old.baseline)
    report = replace(
        old,
        settings=replace(old.settings, sandbox=tools.isolation, scoring=tools.scoring),
        arms=arms,
        pairs=pairs,
        notes=notes(arms, old.servers, tools),
        rescored=provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
    )
    # Last, so that what fails above leaves the old answers beside the old result.
    write_answers(folder / "answers.jsonl", after.values())
    changed = sum(answer.right != before[place].right for place, answer in after.items())
    return report, changed
