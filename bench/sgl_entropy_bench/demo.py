"""The demo: the same ten prompts through three servers, and a table that compares them.

One server runs at a time, since two cores serve one well. Each prompt goes through
``/v1/chat/completions`` (streamed) and through ``/generate``, greedily, one request at a time.
The arms with a drafter must write what the arm without speculation wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sgl_entropy.base.progress import Progress
from sgl_entropy.base.tables import text_table
from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Client, Generation
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server, free_port

ROUTES = ("chat", "generate")
# First guesses for the estimate of the time left, measured on two cores.
STARTUP_GUESS_S = 30.0
TOKENS_PER_S_GUESS = 25.0
ARM_LABELS = {"none": "no speculation", "eagle3": "EAGLE-3", "edsd": "EDSD"}


@dataclass(frozen=True)
class DemoPrompt:
    """One conversation of the demo."""

    id: str
    kind: str
    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class DemoAnswer:
    """The answer to one prompt over one route, and what it cost.

    Attributes:
        token_ids: empty on the chat route, which returns none in this version.
        cycles, emitted: draft-verify cycles and the tokens that they emitted; counted on
            ``/generate`` alone.
        seconds: from sending to the end of the reply.
    """

    prompt: str
    route: str
    text: str
    token_ids: tuple[int, ...]
    tokens: int
    cycles: int
    emitted: int
    seconds: float

    def same_output(self, other: DemoAnswer) -> bool:
        """Whether both texts are equal, and the token ids where the route returns them."""
        return self.token_ids == other.token_ids and self.text == other.text


def load_prompts() -> list[DemoPrompt]:
    """The ten prompts that come with the package."""
    data = resources.files("sgl_entropy_bench").joinpath("data/demo_prompts.jsonl").read_text()
    rows = [json.loads(line) for line in data.splitlines()]
    return [DemoPrompt(row["id"], row["kind"], tuple(row["messages"])) for row in rows]


def ask(
    client: Client, prompt: DemoPrompt, route: str, template: ChatTemplate, limit: int
) -> DemoAnswer:
    """Send one prompt over one route, greedily, for at most ``limit`` new tokens."""
    done: Generation
    if route == "chat":
        done = client.chat(prompt.messages, max_new_tokens=limit)
    else:
        done = client.generate(text=template.render(prompt.messages), max_new_tokens=limit)
    return DemoAnswer(
        prompt.id,
        route,
        done.text,
        done.output_ids,
        done.completion_tokens,
        done.cycles,
        done.emitted,
        done.seconds,
    )


@dataclass(frozen=True)
class ArmResult:
    """All answers of one arm, and its server's start-up time (s) and memory (bytes)."""

    answers: tuple[DemoAnswer, ...]
    startup_s: float
    memory_bytes: int

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the seconds that the requests took, prompts' processing included."""
        return sum(a.tokens for a in self.answers) / sum(a.seconds for a in self.answers)

    @property
    def acceptance_length(self) -> float:
        """tau: tokens that one draft-verify cycle emits on average, pooled over requests.

        1.0 without speculation, where a step emits one token. The token that the prompt's
        processing yields belongs to no cycle.
        """
        cycles = sum(answer.cycles for answer in self.answers)
        return sum(answer.emitted for answer in self.answers) / cycles if cycles else 1.0


@dataclass(frozen=True)
class OutputDifference:
    """One output that is not the reference's; ``position``: of the first token that differs, None
    on the chat route (it returns no ids)."""

    prompt: str
    route: str
    position: int | None


@dataclass(frozen=True)
class ArmFigures:
    """The figures of one arm; ``speedup`` is over the first arm's ``tokens_per_s``."""

    tokens_per_s: float
    acceptance_length: float
    speedup: float
    outputs_equal: bool


@dataclass(frozen=True)
class ArmDetails:
    """The counts that an arm's figures are made from, its differences, start-up and memory."""

    requests: int
    tokens: int
    seconds: float
    cycles: int
    differences: tuple[OutputDifference, ...]
    startup_s: float
    memory_mib: int


def differences(reference: ArmResult, other: ArmResult) -> tuple[OutputDifference, ...]:
    """The outputs of ``other`` that are not the reference's.

    Raises:
        ValueError: the two were not asked the same prompts.
    """
    asked = [(a.prompt, a.route) for a in reference.answers]
    if asked != [(a.prompt, a.route) for a in other.answers]:
        raise ValueError("the two arms were not asked the same prompts over the same routes")
    return tuple(
        OutputDifference(
            actual.prompt, actual.route, first_difference(expected.token_ids, actual.token_ids)
        )
        for expected, actual in zip(reference.answers, other.answers, strict=True)
        if not actual.same_output(expected)
    )


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two sequences differ (a missing token differs), else None."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def summary(results: Mapping[str, ArmResult]) -> dict[str, ArmFigures]:
    """The figures of each arm, as ``demo --json`` writes them; the first arm is the reference."""
    reference = next(iter(results.values()))
    return {
        name: ArmFigures(
            round(result.tokens_per_s, 3),
            round(result.acceptance_length, 4),
            round(result.tokens_per_s / reference.tokens_per_s, 4),
            not differences(reference, result),
        )
        for name, result in results.items()
    }


def details(results: Mapping[str, ArmResult]) -> dict[str, ArmDetails]:
    """The details of each arm, as ``demo --json`` writes them."""
    reference = next(iter(results.values()))
    return {
        name: ArmDetails(
            len(result.answers),
            sum(a.tokens for a in result.answers),
            round(sum(a.seconds for a in result.answers), 3),
            sum(a.cycles for a in result.answers),
            differences(reference, result),
            round(result.startup_s, 2),
            round(result.memory_bytes / 2**20),
        )
        for name, result in results.items()
    }


def table(results: Mapping[str, ArmResult]) -> str:
    """The comparison, as text."""
    rows: list[list[str]] = []
    behind = details(results)
    for name, row in summary(results).items():
        wrong, total = len(behind[name].differences), behind[name].requests
        equal = f"{'yes' if not wrong else 'NO'} ({total - wrong}/{total})"
        rows.append(
            [
                name,
                f"{row.tokens_per_s:.1f}",
                f"{row.acceptance_length:.2f}",
                f"{row.speedup:.2f}x",
                equal if rows else "reference",
            ]
        )
    header = ("arm", "tokens/s", "acceptance length", "speed-up", "outputs equal")
    return text_table(header, rows)


def conclusion(results: Mapping[str, ArmResult]) -> str:
    """The comparison in one sentence: speed over the first arm's, and whether outputs are equal."""
    reference, *others = results
    labels = {name: ARM_LABELS.get(name, name) for name in results}
    if not others:
        return f"{labels[reference]} alone: there is no other arm to compare."
    figures, behind = summary(results), details(results)
    first, *rest = others
    speeds = [
        f"{labels[first]} answers {figures[first].speedup:.2f} times as fast as "
        f"{labels[reference]}",
        *(f"{labels[name]} {figures[name].speedup:.2f} times" for name in rest),
    ]
    unequal = [
        f"{len(behind[name].differences)} of {labels[name]}'s {behind[name].requests} outputs "
        f"differ from those of {labels[reference]}"
        for name in others
        if behind[name].differences
    ]
    outputs = ", ".join(unequal) or f"all {behind[first].requests} outputs are equal"
    return f"{', '.join(speeds)}; {outputs}."


def run_demo(
    engine: Engine,
    arms: Sequence[ServeArm],
    max_new_tokens: int,
    logs: Path,
    progress: Progress | None = None,
    prompts: Sequence[DemoPrompt] | None = None,
    serve: Callable[[ServeArm, int, Path], Server] | None = None,
) -> dict[str, ArmResult]:
    """Serve each arm in turn and send it every prompt over both routes.

    Args:
        serve: makes an arm's server from the arm, a port and a log file; tests put another
            program in its place.

    Returns:
        results by arm, in the order given.

    Raises:
        StartError: a server does not come up.
        ServerError: a server refuses or breaks off. No server is left running in either case.
    """
    prompts = load_prompts() if prompts is None else prompts
    template = ChatTemplate(engine.target)
    requests = len(prompts) * len(ROUTES)
    per_arm = STARTUP_GUESS_S + requests * max_new_tokens / TOKENS_PER_S_GUESS
    progress = progress or Progress(expected_s=per_arm * len(arms))
    startup_share = STARTUP_GUESS_S / per_arm
    results: dict[str, ArmResult] = {}
    for index, arm in enumerate(arms):
        label = f"{arm.name} ({index + 1}/{len(arms)})"
        port = free_port()
        log = logs / f"{arm.name}.log"
        if serve is None:
            server = Server(arm.name, engine.command(arm, port), port, log, engine.environment())
        else:
            server = serve(arm, port, log)

        def fraction(of_arm: float, index: int = index) -> float:
            return (index + of_arm) / len(arms)

        def starting(seconds: float, index: int = index, label: str = label) -> None:
            share = startup_share * min(1.0, seconds / STARTUP_GUESS_S)
            progress.update(
                f"{label}: the server is starting, {seconds:.0f} s", (index + share) / len(arms)
            )

        progress.step(f"{label}: starting the server", fraction(0.0))
        with server.start(starting):
            answers: list[DemoAnswer] = []
            for route in ROUTES:
                for prompt in prompts:
                    answers.append(ask(server.client, prompt, route, template, max_new_tokens))
                    speed = sum(a.tokens for a in answers) / sum(a.seconds for a in answers)
                    share = startup_share + (1 - startup_share) * len(answers) / requests
                    progress.update(
                        f"{label}: {len(answers)}/{requests} requests, {speed:.1f} tokens/s",
                        fraction(share),
                    )
            results[arm.name] = ArmResult(tuple(answers), server.startup_s, server.memory_bytes())
    progress.close()
    return results
