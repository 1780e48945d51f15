"""Drafters served side by side, at temperatures 0 and 1: speed and acceptance by benchmark.

The form of the EDSD paper's Table 1. Every prompt goes to each arm in turn, in rotating order, one
request at a time, at each temperature; all servers are up at once and only one of them runs
(``paired``). A round is one prompt of each benchmark, and intervals come from the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sgl_entropy.base.intervals import jackknife, shown
from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import (
    BENCHMARKS,
    FigurePlan,
    Rounded,
    benchmark_prompts,
)
from sgl_entropy_bench.figures.paired import WARM_UP_TOKENS, PairedArms, answer
from sgl_entropy_bench.figures.windows import TimedAnswer
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.server.launch import Server

PLAIN = "none"
TEMPERATURES = (0.0, 1.0)
TOKENS_PER_S_GUESS = 14.0


@dataclass(frozen=True)
class BenchmarkRow:
    """One arm on one benchmark, pooled."""

    acceptance_length: float
    tokens_per_s: float
    speed_up: float


@dataclass(frozen=True)
class OverBaseline:
    """One arm over the first drafter."""

    acceptance_length: Rounded
    speed: Rounded


@dataclass(frozen=True)
class ServedArm:
    """One arm at one temperature: means of the benchmarks.

    Attributes:
        speed_up: over the arm without a drafter.
        equal_outputs: share of answers with that arm's token ids.
        over_baseline: None for that arm and the first drafter.
    """

    requests: int
    tokens: int
    acceptance_length: Rounded
    speed_up: Rounded
    equal_outputs: float
    benchmarks: Mapping[str, BenchmarkRow]
    over_baseline: OverBaseline | None = None


@dataclass(frozen=True)
class ServedFigure:
    """The whole figure, by temperature (as text) and arm."""

    dtype: str
    max_new_tokens: int
    prompts_per_benchmark: int
    benchmarks: tuple[str, ...]
    temperatures: Mapping[str, Mapping[str, ServedArm]]


# By arm, the answers of one round in the order of BENCHMARKS.
Round = Mapping[str, Sequence[TimedAnswer]]
# Of rounds, an arm and a benchmark's index.
Figure = Callable[[Sequence[Round], str, int], float]


def measure(plan: FigurePlan, per_benchmark: int | None = None) -> tuple[ServedFigure, str]:
    """Returns the figure and its page.

    The plan's first drafter is what the others are compared with.

    Raises:
        ValueError: two arms of one name.
    """
    names = [arm.name for arm in plan.arms()]
    if len({*names, "target"}) <= len(names):  # the target is the provenance's own
        raise ValueError(f"served: expected arms with names of their own, found {', '.join(names)}")
    limit = 24 if plan.quick else 64
    per_benchmark = per_benchmark or (2 if plan.quick else 6)
    prompts = benchmark_prompts(plan.prompts, per_benchmark)
    asked: dict[float, list[dict[str, TimedAnswer]]] = {one: [] for one in TEMPERATURES}
    with PairedArms(plan, plan.arms(), limit, "served", more=",".join(names)) as arms:
        template = ChatTemplate(plan.engine.target)
        progress = Progress(2 * len(prompts) * len(names) * limit / TOKENS_PER_S_GUESS)
        warm = False
        for index, prompt in enumerate(prompts):
            text = template.render(prompt.messages)
            for turn, temperature in enumerate(TEMPERATURES):
                key = f"{prompt.id} {temperature:g}"
                if not warm and key not in arms.records.rows:
                    for each in TEMPERATURES:  # what either uses for the first time
                        arms.in_turn(0, asking(text, WARM_UP_TOKENS, each))
                    warm = True
                ask = asking(text, limit, temperature)
                first = first_of(index, turn, len(names))
                asked[temperature].append(arms.kept(key, TimedAnswer, first, ask))
            where = f"served: {index + 1}/{len(prompts)} prompts on every arm"
            progress.update(where, (index + 1) / len(prompts))
        progress.close()
    by_temperature = {
        f"{temperature:g}": summarise(rounds_of(answers), names[1])
        for temperature, answers in asked.items()
    }
    figure = ServedFigure(plan.engine.dtype, limit, per_benchmark, BENCHMARKS, by_temperature)
    return figure, page(figure)


def asking(text: str, limit: int, temperature: float) -> Callable[[Server], TimedAnswer]:
    """What every arm is asked in a turn."""
    return partial(answer, text=text, limit=limit, temperature=temperature)


def rounds_of(answers: Sequence[Mapping[str, TimedAnswer]]) -> list[Round]:
    """``benchmark_prompts`` interleaves: one prompt of each benchmark in turn is a round."""
    size = len(BENCHMARKS)
    groups = [answers[start : start + size] for start in range(0, len(answers), size)]
    return [{name: [each[name] for each in group] for name in group[0]} for group in groups]


def first_of(prompt: int, turn: int, arms: int) -> int:
    """Which of so many arms comes first: of each benchmark and temperature, all in turn.

    Args:
        prompt: its place in ``benchmark_prompts``; ``turn``: the temperature's place.
    """
    round_, benchmark = divmod(prompt, len(BENCHMARKS))
    return (round_ + benchmark + turn) % arms


def speed(rounds: Sequence[Round], name: str, benchmark: int) -> float:
    """Tokens a second of decoding, pooled over the rounds; 0 where nothing was decoded."""
    answers = [each[name][benchmark] for each in rounds]
    seconds = sum(answer.seconds for answer in answers)
    return sum(answer.decoded for answer in answers) / seconds if seconds else 0.0


def tau(rounds: Sequence[Round], name: str, benchmark: int) -> float:
    """Tokens a cycle, pooled over the rounds; 1 without speculation."""
    answers = [each[name][benchmark] for each in rounds]
    cycles = sum(answer.cycles for answer in answers)
    return sum(answer.emitted for answer in answers) / cycles if cycles else 1.0


def summarise(rounds: Sequence[Round], baseline: str) -> dict[str, ServedArm]:
    """By arm: tau, speed-up over no drafter, and both over ``baseline``'s; means of benchmarks."""
    figures = {}
    for name in rounds[0]:
        pairs = [pair for each in rounds for pair in zip(each[name], each[PLAIN], strict=True)]
        against = None
        if name not in (PLAIN, baseline):
            against = OverBaseline(
                jackknife(rounds, partial(over, tau, name, baseline)).rounded(),
                jackknife(rounds, partial(over, speed_up, name, baseline)).rounded(),
            )
        figures[name] = ServedArm(
            requests=len(pairs),
            tokens=sum(len(answer.output_ids) for answer, _ in pairs),
            acceptance_length=jackknife(rounds, partial(mean, tau, name)).rounded(),
            speed_up=jackknife(rounds, partial(mean, speed_up, name)).rounded(),
            equal_outputs=round(
                sum(a.output_ids == b.output_ids for a, b in pairs) / len(pairs), 4
            ),
            benchmarks={
                benchmark: BenchmarkRow(
                    round(tau(rounds, name, column), 4),
                    round(speed(rounds, name, column), 2),
                    round(speed_up(rounds, name, column), 4),
                )
                for column, benchmark in enumerate(BENCHMARKS)
            },
            over_baseline=against,
        )
    return figures


def speed_up(rounds: Sequence[Round], name: str, benchmark: int) -> float:
    """``speed`` over that of the arm without a drafter."""
    plain = speed(rounds, PLAIN, benchmark)
    return speed(rounds, name, benchmark) / plain if plain else 0.0


def mean(figure: Figure, name: str, rounds: Sequence[Round]) -> float:
    """The mean of ``figure`` over the benchmarks."""
    return sum(figure(rounds, name, column) for column in range(len(BENCHMARKS))) / len(BENCHMARKS)


def over(figure: Figure, name: str, baseline: str, rounds: Sequence[Round]) -> float:
    """The mean of ``figure`` over that of ``baseline``."""
    base = mean(figure, baseline, rounds)
    return mean(figure, name, rounds) / base if base else 0.0


def page(figure: ServedFigure) -> str:
    """The figure as Markdown."""
    parts = [
        "# Drafters in the server, at temperatures 0 and 1",
        f"Chains of 4, {figure.dtype}, one request at a time, at most {figure.max_new_tokens} "
        f"tokens, {figure.prompts_per_benchmark} prompts of each benchmark, every prompt on every "
        "arm in turn. Speed-up: tokens a second of decoding over those without a drafter; tau: "
        "tokens a draft-verify cycle; both pooled within a benchmark, then the mean of the five. "
        "95 % intervals from the rounds of one prompt of each benchmark (jackknife). Equal: share "
        "of answers with the token ids of the arm without a drafter; at temperature 1 every arm "
        "draws anew. Tokens that are not worth their rows are left out of verification, as this "
        "engine does by default.",
    ]
    for temperature, arms in figure.temperatures.items():
        names = list(arms)
        header = (
            *("arm", "tau", f"over {names[1]}", "speed-up", f"over {names[1]}", "equal"),
            *(f"{benchmark}: tau, speed-up" for benchmark in figure.benchmarks),
        )
        rows = []
        for name, row in arms.items():
            against = row.over_baseline
            rows.append(
                [
                    name,
                    shown(row.acceptance_length),
                    shown(against.acceptance_length, 3) if against else "",
                    shown(row.speed_up),
                    shown(against.speed, 3) if against else "",
                    f"{row.equal_outputs:.2f}",
                    *(
                        f"{each.acceptance_length:.2f}, {each.speed_up:.2f}"
                        for each in row.benchmarks.values()
                    ),
                ]
            )
        parts += [f"## Temperature {temperature}", markdown_table(header, rows)]
    return "\n\n".join(parts)
