"""Scores the answers of a finished evaluation anew, from their stored texts; nothing is asked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sgl_entropy.base.provenance import provenance
from sgl_entropy_bench.quality.answers import ScoredAnswer, read_answers, write_answers
from sgl_entropy_bench.quality.eval_report import (
    EvalReport,
    arm_score,
    by_question,
    notes,
    pair_scores,
)
from sgl_entropy_bench.quality.tasks import Question, Task, Tools


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
        raw = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        old = EvalReport.from_json(raw)
    except ValueError as error:
        raise ValueError(f"--rescore {folder}: result.json: {error}") from None
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

    def judged(answer: ScoredAnswer) -> ScoredAnswer:
        if answer.error:
            return answer
        return answer.judged(task.judge(known[answer.question], answer.text, answer.cut, tools))

    after = {place: judged(answer) for place, answer in before.items()}
    samples = old.settings.samples
    by_arm = {arm.arm: by_question(after, questions, arm.arm, samples) for arm in old.arms}
    arms = [
        replace(
            arm_score(arm.arm, arm.custom_params, arm.temperature, by_arm[arm.arm], samples),
            tokens_per_s=arm.tokens_per_s,  # the stored seconds are rounded
        )
        for arm in old.arms
    ]
    report = replace(
        old,
        settings=replace(
            old.settings,
            sandbox=tools.sandbox.isolation if tools.sandbox else None,
            scoring=tools.mathematics.version if tools.mathematics else None,
        ),
        arms=tuple(arms),
        pairs=pair_scores(by_arm, old.baseline, samples),
        notes=notes(arms, old.servers, tools),
        rescored=provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
    )
    # Last, so that what fails above leaves the old answers beside the old result.
    write_answers(folder / "answers.jsonl", after.values())
    changed = sum(answer.right != before[place].right for place, answer in after.items())
    return report, changed
