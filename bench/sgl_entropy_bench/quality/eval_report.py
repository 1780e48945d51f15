"""What the answers come to: each arm's accuracy, and each arm beside the baseline."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_entropy.base.provenance import provenance
from sgl_entropy_bench.quality import proportions
from sgl_entropy_bench.quality.answers import ScoredAnswer
from sgl_entropy_bench.quality.eval_arms import EvalArm
from sgl_entropy_bench.quality.run import Evaluation

Json = dict[str, Any]
FORMAT = 1
LEVEL = 0.05


def baseline_of(arms: Sequence[EvalArm], wanted: str | None) -> str:
    """The arm that others are compared with: the one named, else ``none``, else the first.

    Raises:
        ValueError: no arm of that name.
    """
    names = [arm.name for arm in arms]
    if wanted is not None and wanted not in names:
        raise ValueError(f"--baseline {wanted}: the arms are {', '.join(names)}")
    return wanted or ("none" if "none" in names else names[0])


def result_of(evaluation: Evaluation, baseline: str) -> Json:
    """The whole result, as ``result.json`` holds it."""
    plan = evaluation.plan
    held = {arm.name: _by_question(evaluation, arm.name) for arm in evaluation.arms}
    arms = [_arm(evaluation, arm, held[arm.name]) for arm in evaluation.arms]
    pairs = [
        _pair(arm.name, held[arm.name], baseline, held[baseline], plan.samples)
        for arm in evaluation.arms
        if arm.name != baseline and held[arm.name].keys() & held[baseline].keys()
    ]
    for pair, adjusted in zip(pairs, proportions.holm([p["p"] for p in pairs]), strict=True):
        pair["p_holm"] = adjusted
    errors = sum(arm["errors"] for arm in arms)
    return {
        "format": FORMAT,
        "kind": "sgl-entropy eval",
        "task": plan.task.name,
        "partial": evaluation.partial,
        "errors": errors,
        "baseline": baseline,
        "settings": {
            "source": plan.source,
            "questions": len(plan.questions),
            "samples": plan.samples,
            "temperature": plan.temperature,
            "max_tokens": plan.max_tokens,
            "concurrency": plan.concurrency,
            "seed": plan.seed,
            "example_prompt": plan.questions[0].text,
            "sandbox": plan.sandbox.isolation if plan.sandbox else None,
        },
        "servers": evaluation.servers,
        "arms": arms,
        "pairs": pairs,
        "notes": _notes(evaluation, arms),
        "provenance": provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
    }


def write_result(report: Json, out: Path) -> None:
    """``result.json`` and ``report.md``, each whole or not at all."""
    from sgl_entropy_bench.quality.eval_page import markdown

    for name, text in (
        ("result.json", json.dumps(report, indent=1) + "\n"),
        ("report.md", markdown(report)),
    ):
        partial = out / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)


def _by_question(evaluation: Evaluation, arm: str) -> dict[str, list[ScoredAnswer]]:
    """The questions that an arm has all its answers to."""
    found = {}
    for question in evaluation.plan.questions:
        places = [(arm, question.id, sample) for sample in range(evaluation.plan.samples)]
        if all(place in evaluation.answers for place in places):
            found[question.id] = [evaluation.answers[place] for place in places]
    return found


def _arm(evaluation: Evaluation, arm: EvalArm, held: dict[str, list[ScoredAnswer]]) -> Json:
    samples = evaluation.plan.samples
    answers = [answer for one in held.values() for answer in one]
    shares = [sum(answer.right for answer in one) / samples for one in held.values()]
    accuracy = proportions.accuracy(shares, samples) if shares else None
    tokens = sum(answer.completion_tokens or 0 for answer in answers)
    seconds = sum(answer.seconds for answer in answers if not answer.error)
    errors = Counter(answer.error for answer in answers if answer.error)
    cycles = sum(answer.cycles or 0 for answer in answers)
    outcomes = Counter(answer.outcome.partition(":")[0] for answer in answers if answer.outcome)
    return {
        "arm": arm.name,
        "custom_params": dict(arm.custom_params),
        "temperature": evaluation.temperature(arm),
        "questions": len(held),
        "answers": len(answers),
        "right": sum(answer.right for answer in answers),
        "accuracy": accuracy.value if accuracy else None,
        "interval": [accuracy.low, accuracy.high] if accuracy else None,
        "nothing_found": sum(not answer.found and not answer.error for answer in answers),
        "cut": sum(answer.cut for answer in answers),
        "errors": sum(errors.values()),
        "error_texts": dict(errors.most_common(3)),
        "outcomes": dict(outcomes),
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        "tau": sum(answer.emitted or 0 for answer in answers) / cycles if cycles else None,
        "easd_checks": _total([answer.easd_checks for answer in answers]),
        "easd_fires": _total([answer.easd_fires for answer in answers]),
    }


def _total(values: Sequence[int | None]) -> int | None:
    """None where no answer has one."""
    found = [value for value in values if value is not None]
    return sum(found) if found else None


def _pair(
    arm: str,
    here: dict[str, list[ScoredAnswer]],
    baseline: str,
    there: dict[str, list[ScoredAnswer]],
    samples: int,
) -> Json:
    """An arm beside the baseline, over the questions that both have answered."""
    both = [(here[name], there[name]) for name in here if name in there]
    differences = [sum(a.right for a in one) - sum(b.right for b in two) for one, two in both]
    cells = Counter((a.right, b.right) for one, two in both for a, b in zip(one, two, strict=True))
    only, other = cells[True, False], cells[False, True]
    whole = [
        (a.text, b.text)
        for one, two in both
        for a, b in zip(one, two, strict=True)
        if not a.error and not b.error
    ]
    estimate = proportions.difference([d / samples for d in differences])
    uneven = sum(d != 0 for d in differences)
    return {
        "arm": arm,
        "baseline": baseline,
        "questions": len(both),
        "both_right": cells[True, True],
        "only_arm": only,
        "only_baseline": other,
        "neither": cells[False, False],
        "difference": estimate.value,
        "interval": [estimate.low, estimate.high],
        "test": "McNemar, exact" if samples == 1 else "sign flips by question, exact",
        "p": proportions.mcnemar(only, other)
        if samples == 1
        else proportions.sign_flips(differences),
        # Were all of them on one side, p would still be 2 / 2 ** uneven.
        "could_show": 2.0 ** (1 - uneven) < LEVEL,
        "uneven": uneven,
        "identical": sum(a == b for a, b in whole) / len(whole) if whole else None,
    }


def _notes(evaluation: Evaluation, arms: Sequence[Json]) -> list[str]:
    notes = []
    for arm in arms:
        name, easd = arm["arm"], arm["custom_params"].get("easd", False)
        checks, fires = arm["easd_checks"], arm["easd_fires"]
        if not arm["answers"] or arm["errors"] == arm["answers"]:
            continue
        api = evaluation.servers.get(name, {}).get("api")
        if easd is not False and checks is None:
            why = (
                f"the {api} route does not report it"
                if api != "generate"
                else "does its server know EASD, and speculate?"
            )
            notes.append(f"{name} asks for EASD, and no answer says that it was checked: {why}")
        elif easd is not False and not fires:
            notes.append(f"{name}: EASD never fired: it answered as ordinary verification would")
        elif easd is False and checks:
            notes.append(
                f"{name} does not ask for EASD, and its server checked by it all the same: give it "
                '{"easd": false}'
            )
        if arm["nothing_found"] > arm["answers"] / 2:
            notes.append(f"{name}: most answers hold nothing of the form that was asked for")
        if arm["cut"] > arm["answers"] / 4:
            notes.append(f"{name}: over a quarter of the answers were cut: raise --max-tokens")
    sandbox = evaluation.plan.sandbox
    if sandbox is not None and sandbox.bwrap is None:
        notes.append(f"generated code ran in {sandbox.isolation}")
    return notes
