"""What the answers come to: each arm's accuracy, and each arm compared with the baseline."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sgl_entropy.base.intervals import Interval
from sgl_entropy.base.provenance import provenance
from sgl_entropy_bench.quality import proportions
from sgl_entropy_bench.quality.answers import Place, ScoredAnswer
from sgl_entropy_bench.quality.eval_arms import EvalArm
from sgl_entropy_bench.quality.eval_plan import EvalPlan
from sgl_entropy_bench.quality.run import EvalServer, Evaluation
from sgl_entropy_bench.quality.tasks import Question, Tools

LEVEL = 0.05
# The answers of one arm, by question: those questions to which it has all its samples.
ByQuestion = Mapping[str, Sequence[ScoredAnswer]]


@dataclass(frozen=True)
class EvalSettings:
    """How the questions were asked and scored.

    Attributes:
        sandbox, scoring: what ran generated code, or compared mathematics; None = the task needs
            none (``scoring``: also in results that are older than math-verify).
    """

    source: str
    questions: int
    samples: int
    temperature: float
    max_tokens: int
    concurrency: int
    seed: int
    example_prompt: str
    sandbox: str | None
    scoring: str | None = None

    @classmethod
    def of(cls, plan: EvalPlan) -> EvalSettings:
        return cls(
            plan.source,
            len(plan.questions),
            plan.samples,
            plan.temperature,
            plan.max_tokens,
            plan.concurrency,
            plan.seed,
            plan.questions[0].text,
            plan.tools.isolation,
            plan.tools.scoring,
        )


@dataclass(frozen=True)
class ArmScore:
    """One arm's result.

    Attributes:
        interval: Wilson's, 95 %; None without answers.
        nothing_found: answers without anything of the form that was asked for.
        cut: answers that the token limit ended.
        error_texts: the three most frequent, with their counts.
        outcomes: of generated programs, or of comparisons that were not made.
        tokens_per_s: of a request, on average.
    """

    arm: str
    custom_params: Mapping[str, Any]
    temperature: float
    questions: int
    answers: int
    right: int
    accuracy: float | None
    interval: tuple[float, float] | None
    nothing_found: int
    cut: int
    errors: int
    error_texts: Mapping[str, int]
    outcomes: Mapping[str, int]
    tokens: int
    tokens_per_s: float | None
    tau: float | None
    easd_checks: int | None
    easd_fires: int | None


@dataclass(frozen=True)
class PairScore:
    """An arm against the baseline, over the questions that both have answered.

    Attributes:
        could_show: whether any difference could show, were all uneven questions on one side.
        uneven: questions that tell the arms apart.
        identical: share of answers with the same text.
        p_holm: ``p`` adjusted for the number of pairs.
    """

    arm: str
    baseline: str
    questions: int
    both_right: int
    only_arm: int
    only_baseline: int
    neither: int
    difference: float
    interval: tuple[float, float]
    test: str
    p: float
    could_show: bool
    uneven: int
    identical: float | None
    p_holm: float = 1.0


@dataclass(frozen=True)
class EvalReport:
    """A whole result, as ``result.json`` holds it (by ``base.typed_json``).

    Attributes:
        provenance: of the answers; ``rescored``: of their scores, where those are younger.
    """

    format: Literal[1] = field(default=1, kw_only=True)
    kind: Literal["sgl-entropy eval"] = field(default="sgl-entropy eval", kw_only=True)
    task: str
    partial: bool
    errors: int
    baseline: str
    settings: EvalSettings
    servers: Mapping[str, EvalServer]
    arms: tuple[ArmScore, ...]
    pairs: tuple[PairScore, ...]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]
    rescored: Mapping[str, Any] | None = None


def baseline_of(arms: Sequence[EvalArm], wanted: str | None) -> str:
    """The arm that others are compared with: the one named, else ``none``, else the first.

    Raises:
        ValueError: no arm of that name.
    """
    names = [arm.name for arm in arms]
    if wanted is not None and wanted not in names:
        raise ValueError(f"--baseline {wanted}: the arms are {', '.join(names)}")
    return wanted or ("none" if "none" in names else names[0])


def report_of(evaluation: Evaluation, baseline: str) -> EvalReport:
    """The result of an evaluation, as far as it came."""
    plan = evaluation.plan
    asked = {arm.name: (arm.custom_params, evaluation.temperature(arm)) for arm in evaluation.arms}
    arms, pairs = scores(evaluation.answers, plan.questions, plan.samples, asked, baseline)
    return EvalReport(
        plan.task.name,
        evaluation.partial,
        sum(arm.errors for arm in arms),
        baseline,
        EvalSettings.of(plan),
        evaluation.servers,
        arms,
        pairs,
        notes(arms, evaluation.servers, plan.tools),
        provenance(int(os.environ.get("OMP_NUM_THREADS", "0") or 0)),
    )


def scores(
    answers: Mapping[Place, ScoredAnswer],
    questions: Sequence[Question],
    samples: int,
    asked: Mapping[str, tuple[Mapping[str, Any], float]],
    baseline: str,
) -> tuple[tuple[ArmScore, ...], tuple[PairScore, ...]]:
    """Every arm's result, and of every arm but the baseline against it.

    Args:
        answers: of an arm, those to questions with all their samples count.
        asked: by arm, its requests' ``custom_params`` and temperature.
    """
    by_arm: dict[str, dict[str, list[ScoredAnswer]]] = {arm: {} for arm in asked}
    for arm, question in itertools.product(asked, questions):
        places = [(arm, question.id, sample) for sample in range(samples)]
        if all(place in answers for place in places):
            by_arm[arm][question.id] = [answers[place] for place in places]
    arms = tuple(arm_score(arm, *asked[arm], by_arm[arm], samples) for arm in asked)
    return arms, pair_scores(by_arm, baseline, samples)


def arm_score(
    name: str,
    custom_params: Mapping[str, Any],
    temperature: float,
    answered: ByQuestion,
    samples: int,
) -> ArmScore:
    """One arm's result from its answers."""
    answers = [answer for one in answered.values() for answer in one]
    shares = [sum(answer.right for answer in one) / samples for one in answered.values()]
    accuracy = proportions.accuracy(shares, samples) if shares else None
    tokens = sum(answer.completion_tokens or 0 for answer in answers)
    seconds = sum(answer.seconds for answer in answers if not answer.error)
    errors = Counter(answer.error for answer in answers if answer.error)
    cycles = sum(answer.cycles or 0 for answer in answers)
    outcomes = Counter(answer.outcome.partition(":")[0] for answer in answers if answer.outcome)
    return ArmScore(
        name,
        dict(custom_params),
        temperature,
        len(answered),
        len(answers),
        sum(answer.right for answer in answers),
        accuracy.value if accuracy else None,
        _ends(accuracy) if accuracy else None,
        sum(not answer.found and not answer.error for answer in answers),
        sum(answer.cut for answer in answers),
        sum(errors.values()),
        dict(errors.most_common(3)),
        dict(outcomes),
        tokens,
        tokens / seconds if seconds > 0 else None,
        sum(answer.emitted or 0 for answer in answers) / cycles if cycles else None,
        _total([answer.easd_checks for answer in answers]),
        _total([answer.easd_fires for answer in answers]),
    )


def _ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def _total(values: Sequence[int | None]) -> int | None:
    """None where no answer has one."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def pair_scores(
    by_arm: Mapping[str, ByQuestion], baseline: str, samples: int
) -> tuple[PairScore, ...]:
    """Every arm that shares a question with the baseline against it, with Holm's adjustment."""
    there = by_arm[baseline]
    pairs = [
        _pair(arm, here, baseline, there, samples)
        for arm, here in by_arm.items()
        if arm != baseline and here.keys() & there.keys()
    ]
    adjusted = proportions.holm([pair.p for pair in pairs])
    return tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True))


def _pair(arm: str, here: ByQuestion, baseline: str, there: ByQuestion, samples: int) -> PairScore:
    both = [(here[name], there[name]) for name in here if name in there]
    differences = [sum(a.right for a in one) - sum(b.right for b in two) for one, two in both]
    answers = [pair for one, two in both for pair in zip(one, two, strict=True)]
    cells = Counter((a.right, b.right) for a, b in answers)
    whole = [(a.text, b.text) for a, b in answers if not a.error and not b.error]
    estimate = proportions.difference([d / samples for d in differences])
    uneven = sum(d != 0 for d in differences)
    return PairScore(
        arm,
        baseline,
        len(both),
        cells[True, True],
        cells[True, False],
        cells[False, True],
        cells[False, False],
        estimate.value,
        _ends(estimate),
        "McNemar, exact" if samples == 1 else "sign flips by question, exact",
        proportions.sign_flips(differences),
        # Were all of them on one side, p would still be 2 / 2 ** uneven.
        2.0 ** (1 - uneven) < LEVEL,
        uneven,
        sum(a == b for a, b in whole) / len(whole) if whole else None,
    )


def notes(
    arms: Sequence[ArmScore], servers: Mapping[str, EvalServer], tools: Tools
) -> tuple[str, ...]:
    """What a reader should know before believing the numbers, one sentence each."""
    sentences = [note for arm in arms for note in _arm_notes(arm, servers.get(arm.arm))]
    sandbox = tools.sandbox
    if sandbox is not None and sandbox.bwrap is None:
        sentences.append(f"generated code ran in {sandbox.isolation}")
    return tuple(sentences)


def _arm_notes(arm: ArmScore, server: EvalServer | None) -> list[str]:
    name, easd = arm.arm, arm.custom_params.get("easd", False)
    if not arm.answers or arm.errors == arm.answers:
        return []
    sentences = []
    if easd is not False and arm.easd_checks is None:
        why = (
            "does its server know EASD, and speculate?"
            if server and server.api == "generate"
            else f"the {server.api if server else 'unknown'} route does not report it"
        )
        sentences.append(f"{name} asks for EASD, and no answer says that it was checked: {why}")
    elif easd is not False and not arm.easd_fires:
        sentences.append(f"{name}: EASD never fired: it answered as ordinary verification would")
    elif easd is False and arm.easd_checks:
        sentences.append(
            f"{name} does not ask for EASD, and its server checked by it all the same: give it "
            '{"easd": false}'
        )
    if arm.nothing_found > arm.answers / 2:
        sentences.append(f"{name}: most answers hold nothing of the form that was asked for")
    if arm.cut > arm.answers / 4:
        sentences.append(f"{name}: over a quarter of the answers were cut: raise --max-tokens")
    return sentences
