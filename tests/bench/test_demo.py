"""The demo: its comparison on recorded answers, and all of it against the fake server."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from sgl_entropy_bench.demo import (
    ArmFigures,
    ArmResult,
    DemoAnswer,
    OutputDifference,
    conclusion,
    differences,
    first_difference,
    load_prompts,
    run_demo,
    summary,
    table,
)
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server, StartError

from sgl_entropy import cli
from sgl_entropy.base.progress import Progress


def arm(seconds: float, cycles: int = 0) -> ArmResult:
    """An arm with two prompts over both routes, 10 tokens each."""
    answers = [
        DemoAnswer("p1", "chat", "one", (), 10, 0, 0, seconds),
        DemoAnswer("p2", "chat", "two", (), 10, 0, 0, seconds),
        DemoAnswer("p1", "generate", "one", tuple(range(10)), 10, cycles, 9, seconds),
        DemoAnswer("p2", "generate", "two", tuple(range(10)), 10, cycles, 9, seconds),
    ]
    return ArmResult(tuple(answers), 1.0, 2**30)


def changed(result: ArmResult, index: int, **fields: object) -> ArmResult:
    answers = list(result.answers)
    answers[index] = dataclasses.replace(answers[index], **fields)  # type: ignore[arg-type]
    return dataclasses.replace(result, answers=tuple(answers))


def test_figures_from_recorded_arms() -> None:
    figures = summary({"none": arm(0.5), "edsd": arm(0.25, cycles=4)})
    assert figures["none"] == ArmFigures(20.0, 1.0, 1.0, True)
    # 18 tokens over 8 cycles: the chat route counts no cycles and stays out of tau
    assert figures["edsd"] == ArmFigures(40.0, 2.25, 2.0, True)


def test_acceptance_is_pooled_over_requests() -> None:
    uneven = changed(arm(0.5, cycles=8), 3, emitted=29, cycles=2)
    assert uneven.acceptance_length == pytest.approx((9 + 29) / (8 + 2))


def test_one_token_that_differs_is_found() -> None:
    ids = (0, 1, 2, 3, 4, 5, 99, 7, 8, 9)
    results = {"none": arm(0.5), "edsd": changed(arm(0.5), 2, token_ids=ids)}
    assert not summary(results)["edsd"].outputs_equal
    assert differences(results["none"], results["edsd"]) == (OutputDifference("p1", "generate", 6),)
    assert "NO (3/4)" in table(results)


def test_the_conclusion_says_what_the_table_shows() -> None:
    fast = {"none": arm(0.6), "eagle3": arm(0.4), "edsd": arm(0.75)}
    assert conclusion(fast) == (
        "EAGLE-3 answers 1.50 times as fast as no speculation, EDSD 0.80 times; "
        "all 4 outputs are equal."
    )
    wrong = {**fast, "edsd": changed(changed(arm(0.3), 1, text="tw0"), 3, text="tw0")}
    assert conclusion(wrong).endswith(
        "EDSD 2.00 times; 2 of EDSD's 4 outputs differ from those of no speculation."
    )
    assert conclusion({"none": arm(0.5)}).startswith("no speculation alone")


def test_a_letter_that_differs_on_the_chat_route_is_found() -> None:
    results = {"none": arm(0.5), "edsd": changed(arm(0.5), 1, text="tw0")}
    assert not summary(results)["edsd"].outputs_equal


def test_different_questions_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="not asked the same"):
        differences(arm(0.5), changed(arm(0.5), 0, prompt="p3"))


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [4], 0)],
)
def test_first_difference(one: list[int], other: list[int], position: int | None) -> None:
    assert first_difference(one, other) == position


def test_the_prompts_are_ten_and_of_different_kinds() -> None:
    prompts = load_prompts()
    assert len(prompts) == 10
    assert len({prompt.id for prompt in prompts}) == len({prompt.kind for prompt in prompts}) == 10
    assert all(prompt.messages[-1]["role"] == "user" for prompt in prompts)


def test_the_whole_demo_against_the_fake_server(
    target: Path, tmp_path: Path, launch: Callable[..., Server]
) -> None:
    flags = {
        "none": ["--cycle-s", "0.004"],
        "eagle3": ["--cycle-s", "0.004", "--per-cycle", "3"],
        "edsd": ["--cycle-s", "0.004", "--per-cycle", "3", "--flip", "Norway"],
    }
    arms = [
        ServeArm("none"),
        ServeArm("eagle3", "EAGLE3", tmp_path),
        ServeArm("edsd", "EDSD", tmp_path),
    ]
    stream = io.StringIO()
    served: list[Server] = []

    def serve(arm: ServeArm, port: int, log: Path) -> Server:
        assert not any(server.pids() for server in served), "two servers at once"
        served.append(launch(*flags[arm.name], name=arm.name, port=port))
        return served[-1]

    results = run_demo(
        Engine(target), arms, 13, tmp_path / "logs", Progress(10.0, stream, 0.0), serve=serve
    )
    figures = summary(results)
    # 1 token by the prompt's processing, and 12 in 4 cycles
    assert figures["eagle3"].acceptance_length == 3.0
    assert figures["eagle3"].outputs_equal
    assert figures["eagle3"].speedup > 1.2
    assert not figures["edsd"].outputs_equal
    wrong = differences(results["none"], results["edsd"])
    assert [(row.prompt, row.route, row.position) for row in wrong] == [
        ("short-answer", "chat", None),
        ("short-answer", "generate", 6),
    ]
    assert not any(server.pids() for server in served)
    lines = stream.getvalue()
    assert "eagle3 (2/3): 20/20 requests" in lines
    assert "left)" in lines


def test_a_server_that_fails_ends_the_demo(
    target: Path, tmp_path: Path, launch: Callable[..., Server]
) -> None:
    with pytest.raises(StartError, match="ended while starting"):
        run_demo(
            Engine(target),
            [ServeArm("none")],
            4,
            tmp_path,
            Progress(1.0, io.StringIO()),
            serve=lambda arm, port, log: launch("--fail-with", "boom", port=port),
        )


def test_a_missing_drafter_is_one_clear_message(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["demo", "--target", str(target), "--eagle3", "/nowhere"])
    assert code == 2
    message = capsys.readouterr().err
    assert "no EAGLE3 drafter in /nowhere" in message
    assert "--eagle3 DIR" in message
    assert "Traceback" not in message


def test_an_arm_needs_both_algorithm_and_drafter() -> None:
    with pytest.raises(ValueError, match="needs a drafter"):
        ServeArm("edsd", "EDSD")


def test_the_command_line_names_the_drafter() -> None:
    engine = Engine(Path("/t"), threads=2)
    words = engine.command(ServeArm("edsd", "EDSD", Path("/d")), 4000)
    assert words[words.index("--speculative-algorithm") + 1] == "EDSD"
    assert words[words.index("--speculative-num-draft-tokens") + 1] == "5"
    assert words[words.index("--dtype") + 1] == "float32"
    assert engine.environment()["OMP_NUM_THREADS"] == "2"
    assert not any("speculative" in word for word in engine.command(ServeArm("none"), 4000))
