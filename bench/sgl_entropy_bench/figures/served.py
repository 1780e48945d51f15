"""Drafters served side by side, at temperatures 0 and 1: speed and acceptance by benchmark.

The form of the EDSD paper's Table 1. Every prompt goes to each arm in turn, in rotating order, one
request at a time, at each temperature; all servers are up at once and only one of them runs
(``paired``). A round is one prompt of each benchmark, and intervals come from the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from sgl_entropy.base.intervals import jackknife, shown
from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import markdown_table
from sgl_entropy_bench.figures.figure_plan import (
    BENCHMARKS,
    BenchPrompt,
    FigurePlan,
    Records,
    Rounded,
    benchmark_prompts,
)
from sgl_entropy_bench.figures.paired import WARM_UP_TOKENS, kept, running, start_all
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.server.launch import Server

PLAIN = "none"
TEMPERATURES = (0.0, 1.0)
TOKENS_PER_S_GUESS = 14.0


@dataclass(frozen=True)
class ServedAnswer:
    """One request: ``emitted`` tokens in ``cycles``, ``decoded`` tokens in ``seconds`` of decoding.

    ``decoded`` counts those after the first event; ``total_s`` includes the prompt.
    """

    output_ids: tuple[int, ...]
    cycles: int
    emitted: int
    decoded: int
    seconds: float
    total_s: float

    @classmethod
    def ask(cls, client: Client, text: str, limit: int, temperature: float) -> ServedAnswer:
        """Ask for one answer; the prompt is processed anew."""
        client.forget_prefixes()
        done = client.generate(text=text, max_new_tokens=limit, temperature=temperature)
        first, last = done.arrivals[0], done.arrivals[-1]
        return cls(
            done.output_ids,
            done.cycles,
            done.emitted,
            done.completion_tokens - first.tokens,
            last.time_s - first.time_s,
            done.seconds,
        )


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
Round = Mapping[str, Sequence[ServedAnswer]]
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
    records = kept(plan, "served", plan.arms(), limit, ",".join(names))
    _ask_missing(plan, prompts, limit, records)
    by_temperature = {}
    for temperature in TEMPERATURES:
        rounds = [
            {
                name: [read(records.rows[_key(p, temperature, name)]) for p in group]
                for name in names
            }
            for group in _rounds(prompts)
        ]
        by_temperature[f"{temperature:g}"] = summarise(rounds, names[1])
    figure = ServedFigure(plan.engine.dtype, limit, per_benchmark, BENCHMARKS, by_temperature)
    text = page(figure)
    plan.spent.append(records.path)
    return figure, text


def _rounds(prompts: Sequence[BenchPrompt]) -> list[Sequence[BenchPrompt]]:
    """``benchmark_prompts`` interleaves: one of each benchmark in turn."""
    size = len(BENCHMARKS)
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _key(prompt: BenchPrompt, temperature: float, name: str) -> str:
    return f"{prompt.id} {temperature:g} {name}"


def _ask_missing(
    plan: FigurePlan, prompts: Sequence[BenchPrompt], limit: int, records: Records
) -> None:
    """Every prompt at every temperature on every arm, but for what ``records`` holds."""
    arms = plan.arms()
    todo = [
        (first_of(index, turn, len(arms)), prompt, temperature)
        for index, prompt in enumerate(prompts)
        for turn, temperature in enumerate(TEMPERATURES)
        if records.missing(_key(prompt, temperature, arm.name) for arm in arms)
    ]
    if not todo:
        return
    template = ChatTemplate(plan.engine.target)
    with ExitStack() as stack:
        servers = start_all(plan, stack, arms, "served")
        for temperature in TEMPERATURES:  # what either uses for the first time
            _in_turn(servers, 0, template.render(prompts[0].messages), WARM_UP_TOKENS, temperature)
        progress = Progress(len(todo) * len(arms) * limit / TOKENS_PER_S_GUESS)
        for done, (first, prompt, temperature) in enumerate(todo, 1):
            text = template.render(prompt.messages)
            for name, answer in _in_turn(servers, first, text, limit, temperature).items():
                records.add({"id": _key(prompt, temperature, name), **vars(answer)})
            progress.update(f"served: {done}/{len(todo)} prompts on every arm", done / len(todo))
        progress.close()


def first_of(prompt: int, turn: int, arms: int) -> int:
    """Which of so many arms comes first: of each benchmark and temperature, all in turn.

    Args:
        prompt: its place in ``benchmark_prompts``; ``turn``: the temperature's place.
    """
    round_, benchmark = divmod(prompt, len(BENCHMARKS))
    return (round_ + benchmark + turn) % arms


def _in_turn(
    servers: Mapping[str, Server], first: int, text: str, limit: int, temperature: float
) -> dict[str, ServedAnswer]:
    """One prompt on every arm, beginning with the ``first``."""
    names = list(servers)
    answers = {}
    for name in names[first:] + names[:first]:
        with running(servers[name]):
            answers[name] = ServedAnswer.ask(servers[name].client, text, limit, temperature)
    return answers


def read(row: Mapping[str, Any]) -> ServedAnswer:
    """An answer from its record."""
    fields = {name: value for name, value in row.items() if name != "id"}
    return ServedAnswer(**{**fields, "output_ids": tuple(row["output_ids"])})


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
