"""The figures' arithmetic on made-up records, and each figure against the fake server."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.figures import (
    clients,
    easd,
    easd_grid,
    easd_overhead,
    hostile,
    leaks,
    lossless,
    paired,
    served,
    speed,
    startup,
    stop,
    wrong_requests,
    wrong_values,
)
from sgl_entropy_bench.figures.figure_plan import (
    BENCHMARKS,
    FigurePlan,
    Records,
    benchmark_prompts,
    in_parallel,
    write_results,
)
from sgl_entropy_bench.figures.windows import DecodeWindow, TimedAnswer, full_batch_window
from sgl_entropy_bench.http.client import Arrival, Generation
from sgl_entropy_bench.server.arms import Engine, ServeArm
from sgl_entropy_bench.server.launch import Server

from sgl_entropy.base import provenance
from sgl_entropy.base.intervals import jackknife, shown
from sgl_entropy.base.provenance import command_line
from sgl_entropy.base.typed_json import as_json, from_json
from sgl_entropy.cli import main
from sgl_entropy.cli.figures import FIGURES

ROOT = Path(__file__).resolve().parents[3]


def generation(times: Sequence[float], tokens: Sequence[int], cycles: int = 0) -> Generation:
    arrivals = tuple(Arrival(*row) for row in zip(times, tokens, strict=True))
    last = tokens[-1]
    return Generation(
        "", (), 1, last, cycles, last - 1, "length", 0.0, times[0], times[-1], arrivals
    )


def test_two_figures_side_by_side_do_not_share_a_log(plan: FigurePlan) -> None:
    arm = plan.arms()[0]
    one, other = plan.server(arm), plan.server(arm)
    assert (one.log == other.log) == (one.port == other.port)


def test_records_of_other_code_are_not_resumed(
    plan: FigurePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that goes on after a change must not mix what two engines answered."""
    for name in ("patches/v1", "sgl_entropy/runtime", "sgl_entropy/drafter", "docs"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "tree")
    (tmp_path / "tree/sgl_entropy/runtime/worker.py").write_text("a = 1")
    arm, target = plan.arm_key(plan.arms()[1]), plan.target_key()
    (tmp_path / "tree/docs/page.py").write_text("b = 1")
    assert plan.arm_key(plan.arms()[1]) == arm
    (tmp_path / "tree/sgl_entropy/runtime/worker.py").write_text("a = 2")
    changed = plan.arm_key(plan.arms()[1])
    assert changed != arm
    (tmp_path / "tree/patches/v1/0001.patch").write_text("c")
    assert plan.arm_key(plan.arms()[1]) not in (arm, changed)
    assert plan.target_key() == target


def test_the_window_is_where_all_decode() -> None:
    """One begins later, one ends earlier: outside of both, nothing counts."""
    early = generation([0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
    late = generation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    window = full_batch_window([early, late])
    assert window is not None
    # from 1 to 4: three tokens and three steps each
    assert (window.batch, window.seconds, window.tokens, window.steps) == (2, 6.0, 6, 6)
    assert window.tokens_per_s == pytest.approx(2.0)
    assert window.step_s == pytest.approx(1.0)
    assert window.tokens_per_step == 1.0


def test_merged_events_do_not_change_the_cost_of_a_cycle() -> None:
    """Eight cycles of 0.5 s, two tokens each: seen one by one, or merged into three events."""
    whole = generation([i * 0.5 for i in range(9)], [1 + 2 * i for i in range(9)], 8)
    merged = generation([0.0, 1.0, 2.5, 4.0], [1, 5, 11, 17], 8)
    for done in (whole, merged):
        window = full_batch_window([done])
        assert window is not None
        assert window.step_s == pytest.approx(0.5)
        assert window.tokens_per_step == pytest.approx(2.0)


def test_cycles_are_counted_one_by_one_where_none_is_merged() -> None:
    """Uneven cycles in a part of the request: sharing them out by tokens would be wrong."""
    uneven = generation([0, 1, 2, 3, 4], [1, 6, 7, 8, 9], 4)
    late = generation([2, 2.5, 3, 3.5, 4], [1, 2, 3, 4, 5], 4)
    window = full_batch_window([uneven, late])
    assert window is not None
    assert window.steps == 2 + 4


def test_batches_that_hardly_overlap_have_no_window() -> None:
    assert full_batch_window([generation([0, 1], [1, 2]), generation([0.9, 2], [1, 2])]) is None


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ({1: 1.5, 8: 1.2}, None),
        ({1: 0.9, 8: 0.5}, 0.0),
        # halfway between 2 and 8 on a logarithmic scale
        ({1: 1.5, 2: 1.1, 8: 0.9}, 4.0),
        # noise: a dip before the last size that pays does not count
        ({1: 1.2, 2: 0.99, 4: 1.1, 16: 0.9}, 8.0),
    ],
)
def test_break_even(speedups: dict[int, float], expected: float | None) -> None:
    assert speed.break_even(speedups) == (expected and pytest.approx(expected))


def test_flatness_looks_past_the_first_quarter() -> None:
    settling = [(n, 100.0 + min(n, 25)) for n in range(1, 101)]
    assert leaks.flatness(settling).memory_flat
    growing = [(n, 100.0 + 0.1 * n) for n in range(1, 101)]
    assert not leaks.flatness(growing).memory_flat
    assert leaks.flatness(growing).growth_share == pytest.approx(7.4 / 102.6, rel=1e-3)
    assert leaks.flatness([(0, 10.0), (10, 30.0)]).bytes_per_request == 2


def test_records_resume_and_survive_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    first = Records(path)
    first.add({"id": "a", "value": 1})
    with path.open("a") as handle:
        handle.write('{"id": "b", "val')
    again = Records(path)
    assert again.missing(["a", "b"]) == ["b"]
    again.add({"id": "b", "value": 2})
    assert Records(path).rows == {"a": {"id": "a", "value": 1}, "b": {"id": "b", "value": 2}}


def test_an_error_in_parallel_work_stops_the_rest() -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item == 3:
            raise RuntimeError("third")
        return item

    with pytest.raises(RuntimeError, match="third"):
        in_parallel(range(1000), 1, work, lambda _: None)
    assert started == [0, 1, 2, 3]


def test_commands_are_recorded_without_this_machines_paths() -> None:
    words = ["/a/b/sgl-entropy", "figures", "--prompts", "/home/me/bench", "--out=/tmp/x"]
    assert command_line(words) == "sgl-entropy figures --prompts bench --out=x"
    quoted = ["sgl-entropy", "train", "--set", 'work="/home/someone/w"', "--set", 'a.b="c"']
    assert command_line(quoted) == """sgl-entropy train --set 'work="w"' --set 'a.b="c"'"""


def test_hostile_cases_are_seeded_and_mixed() -> None:
    one = list(hostile.cases(["x"], 400, 1000, seed=1))
    assert one == list(hostile.cases(["x"], 400, 1000, seed=1))
    assert {case.kind for case in one} == set(hostile.MIX)
    assert len({case.rid for case in one}) == 400


def test_a_refusal_that_did_not_come_is_unexpected() -> None:
    case = next(c for c in hostile.cases(["x"], 400, 1000) if c.kind == "bad_input")
    assert leaks.expected(case, "400")
    assert not leaks.expected(case, "accepted")
    assert not leaks.expected(case, "500")


def test_sequences_are_compared_token_by_token() -> None:
    expected = {"a": [1, 2, 3], "b": [4, 5]}
    assert lossless.differences(expected, {"a": [1, 2, 3], "b": [4, 6]}) == [
        lossless.SequenceDifference("b", 1)
    ]


def test_benchmark_prompts_are_interleaved_and_checked(prompts: Path) -> None:
    found = benchmark_prompts(prompts, 2)
    assert [prompt.id for prompt in found][:6] == [f"{b}/0" for b in BENCHMARKS] + ["mt_bench/1"]
    with pytest.raises(ValueError, match="6 prompts, 7 are needed"):
        benchmark_prompts(prompts, 7)
    (prompts / "sum.jsonl").unlink()
    with pytest.raises(ValueError, match=r"sum\.jsonl is missing"):
        benchmark_prompts(prompts, 1)
    with pytest.raises(ValueError, match="--prompts DIR"):
        benchmark_prompts(None, 1)


def test_speed_against_the_fake_server(plan: FigurePlan) -> None:
    data, page = speed.measure(plan, {1: 2, 4: 2})
    one = data.batch_sizes["1"]
    # 3 tokens a cycle. Times are this machine's: how busy it is, is nobody's business here.
    assert one["edsd"].acceptance_length == pytest.approx(3.0, rel=0.15)
    assert one["edsd"].batches == one["edsd"].windows == 2
    assert one["none"].step_cost == 1.0
    assert one["none"].decode_speedup_paired.median == 1.0
    for row in (one["edsd"], data.batch_sizes["4"]["eagle3"]):
        assert row.decode_speedup == pytest.approx(row.acceptance_length / row.step_cost, rel=0.01)
    assert set(data.break_even_batch_size) == {"eagle3", "edsd"}
    assert "none, batch 4" in page
    path = write_results(plan, "speed", data, page)
    assert path.name == "speed-quick.md"
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["provenance"]["inputs"]["edsd"]["identity"]
    assert str(plan.engine.target.parent) not in path.with_suffix(".json").read_text()


def test_easd_against_the_fake_server(plan: FigurePlan) -> None:
    data, _ = easd.measure(plan, "easd-overhead", ("edsd",), {1: 3, 2: 2})
    cost = data.drafters["edsd"].batch_sizes
    assert cost["2"].batches == 2
    assert cost["1"].equal_outputs == 1.0
    assert cost["1"].cycle_ratio["low"] < cost["1"].cycle_ratio["high"]
    # Two requests a step: 0.05 ms of each, of steps of 5 ms and more.
    assert (cost["1"].own_ms, cost["2"].own_ms) == (0.05, 0.1)
    assert 0 < cost["1"].own_share["value"] < 0.011
    assert cost["1"].goal == "met"
    data, page = easd.measure(plan, "easd", ("edsd",), 2)
    grid = data.drafters["edsd"].benchmarks
    assert list(grid) == ["all", *BENCHMARKS]
    assert {row.prompts for row in grid["gsm8k"].values()} == {2}
    off, low, high = (grid["all"][name] for name in ("off", "1", "3"))
    # It fires twice in each of ten answers of 24 tokens, of which the first is not checked.
    assert (off.checks, off.fires, off.differing) == (0, 0, 0)
    assert (low.checks, low.fires, low.differing) == (230, 20, 10)
    assert low.fires_per_check["value"] == pytest.approx(2 / 23, abs=1e-4)
    assert low.fires_per_100_tokens["value"] == pytest.approx(200 / 24, abs=1e-4)
    assert (high.checks, high.fires, high.differing_share["value"]) == (230, 0, 0.0)
    assert off.speed_ratio == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert off.acceptance_length["value"] == pytest.approx(23 / 8, abs=1e-4)
    assert "| all, 1 | 230 | 20 | 0.087 (0.087-0.087) | 8.33 (8.33-8.33) |" in page
    # Once it is written, nothing is left that a second measurement would take for its own.
    write_results(plan, "easd", data, page)
    assert [file.name for file in (plan.work / "easd").iterdir()] == []


def test_an_interrupted_figure_goes_on_and_a_finished_one_begins_anew(
    plan: FigurePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    most = 3
    run_batch, answer = paired.run_batch, easd_grid.answer

    def note(name: str) -> None:
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append(name)

    def noted(server: Server, texts: Sequence[str], limit: int) -> paired.PairedBatch:
        if limit != paired.WARM_UP_TOKENS:
            note(server.name)
        return run_batch(server, texts, limit)

    def counted(server: Server, **asked: Any) -> TimedAnswer:
        note("grid")
        return answer(server, **asked)

    def again(figure: str, amount: Any, limit: int = 100) -> list[str]:
        nonlocal most
        most = limit
        asked.clear()
        found = easd.measure(plan, figure, ("edsd",), amount)
        write_results(plan, figure, *found)
        return asked

    monkeypatch.setattr(paired, "run_batch", noted)
    monkeypatch.setattr(easd_grid, "answer", counted)
    # A batch that one arm alone has finished is asked of both again.
    with pytest.raises(KeyboardInterrupt):
        again("easd-overhead", {1: 2}, 3)
    assert asked == ["standard", "easd", "easd"]
    assert again("easd-overhead", {1: 2}) == ["easd", "standard"]
    assert again("easd-overhead", {1: 2}) == ["standard", "easd", "easd", "standard"]
    # Three settings of five prompts.
    with pytest.raises(KeyboardInterrupt):
        again("easd", 1, 4)
    assert again("easd", 1) == ["grid"] * (15 - 4)
    assert again("easd", 1) == ["grid"] * 15


def test_the_servers_of_easd_are_what_the_page_says(plan: FigurePlan) -> None:
    assert easd_overhead.NEVER_NATS == 1000
    arms = [replace(plan.drafted("eagle3"), extra_flags=easd_grid.FLAGS), plan.drafted("eagle3")]
    assert arms[0].flags()[-2:] == ["--speculative-verify-mode", "easd"]
    whole = replace(arms[1], variables=easd_grid.ALL_VERIFIED)
    environment = plan.server(whole).environment
    assert environment is not None
    assert environment["SGL_ENTROPY_CPU_CYCLE_ROWS"] == "inf"
    # Each writes, or is timed, differently: none resumes another's records.
    assert len({plan.arm_key(arm) for arm in (*arms, whole)}) == 3
    with pytest.raises(ValueError, match="no drafter 'none': expected eagle3 or edsd"):
        plan.drafted("none")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.001, 0.02, "met"),
        (0.021, 0.1, "missed"),
        (0.01, 0.03, "not decided"),
        (None, None, "not decided"),
    ],
)
def test_a_goal_is_met_only_where_the_interval_says_so(
    low: float | None, high: float | None, said: str
) -> None:
    assert easd_overhead.verdict({"value": 0.02, "low": low, "high": high}) == said


def test_stop_against_the_fake_server(plan: FigurePlan, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.json"
    calibration.write_text("{}")
    data, page = stop.measure(plan, ("eagle3",), calibration, {1: 2})
    rows = data.drafters["eagle3"]["1"]
    assert list(rows) == ["fixed", "svip", "calibrated", "fixed-all", "svip-all", "calibrated-all"]
    assert [row.verified_per_cycle for row in rows.values()] == [4, 2, 2] * 2
    assert {row.equal_outputs for row in rows.values()} == {1.0}
    assert rows["fixed-all"].decode_ratio == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert rows["svip"].decode_ratio["low"] is not None
    assert data.calibration.file == "calibration.json"
    assert "eagle3, batch 1, svip, all verified" in page
    with pytest.raises(ValueError, match="made for one drafter: name it with --drafter"):
        stop.measure(plan, ("eagle3", "edsd"), calibration)
    with pytest.raises(ValueError, match="absent: no such file"):
        stop.measure(plan, ("edsd",), tmp_path / "absent")


def test_other_outputs_are_seen() -> None:
    def batch(*outputs: tuple[int, ...]) -> paired.PairedBatch:
        return paired.PairedBatch(DecodeWindow(2, 2.0, 6, 3.0), 8, 3.0, 4, 16, 6, outputs)

    rows = [{"a": batch((1, 2), (3,)), "b": batch((1, 2), (4,))}]
    assert paired.equal_share(rows, "a", "b") == 0.5
    written = json.loads(json.dumps(as_json(rows[0]["a"])))
    assert from_json(paired.PairedBatch, written) == rows[0]["a"]


def test_the_interval_of_a_mean_is_students() -> None:
    """Of a mean, the jackknife is the textbook's interval; of a ratio it is pooled."""
    values = [1.0, -1.0, -2.0, -6.0, 3.0, -4.0, -0.5, -2.5]
    found = jackknife(values, lambda some: sum(some) / len(some))
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert found.value == -1.5
    assert found.high is not None
    assert found.high - found.value == pytest.approx(2.3646 * error, rel=0.01)
    pairs = [(1.0, 2.0), (3.0, 2.0), (5.0, 8.0)]
    pooled = jackknife(pairs, lambda some: sum(a for a, _ in some) / sum(b for _, b in some))
    assert pooled.value == 0.75
    assert pooled.low is not None
    assert pooled.high is not None
    assert pooled.low * pooled.high == pytest.approx(0.75**2)


def test_no_interval_stands_where_none_is_known() -> None:
    for units in ([0.0, 0.0, 0.0], [2.0]):
        found = jackknife(units, sum)
        assert (found.low, found.high) == (None, None)
        assert shown(found.rounded()) == f"{units[0]:.2f}"
    # One prompt alone fired: the interval reaches down to nothing, and not below.
    alone = jackknife([0.0, 0.0, 3.0], lambda some: sum(some) / len(some))
    assert alone.low == 0.0
    assert jackknife([0.1, 0.9], lambda some: sum(some) / len(some), most=1.0).high == 1.0
    with pytest.raises(ValueError, match="no units"):
        jackknife([], sum)


def test_the_help_has_one_line_for_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["figures", "--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for figure in FIGURES.items():
        assert [*figure] in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["speed", "--drafter", "edsd"],
            "belongs to easd, easd-overhead, stop, not to",
        ),
        (["easd", "--calibration", "f"], "--calibration belongs to stop, not to easd"),
        (["speed", "--arm", "a=b"], "--arm belongs to served, not to speed"),
        (["served", "--arm", "a"], "--arm a: expected NAME=DIR"),
        (["served", "--arm", "../a=b"], "--arm ../a=b: expected NAME=DIR"),
        (["served", "--arm", "none=b"], "`none` is the arm without a drafter"),
        (["served", "--arm", "a=absent"], "--arm a=absent: no such folder"),
        (["served", "--arm", "a=tests"], "config.json"),
    ],
)
def test_options_of_other_figures_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "way", "row"),
    [
        ("speed", ("batch_sizes", "1", "edsd"), speed.ArmSpeed),
        ("speed", ("batch_sizes", "1", "edsd", "step_cost_paired"), speed.Quartiles),
        ("speed", (), speed.SpeedFigure),
        ("stop", ("drafters", "edsd", "1", "fixed"), stop.StopRow),
        ("stop", (), stop.StopFigure),
        ("easd", ("drafters", "edsd", "benchmarks", "all", "off"), easd_grid.SettingRow),
        ("easd", ("drafters", "edsd"), easd_grid.GridFigure),
        ("easd-overhead", ("drafters", "edsd", "batch_sizes", "1"), easd_overhead.OverheadRow),
        ("easd-overhead", ("drafters", "edsd"), easd_overhead.OverheadFigure),
        ("lossless", ("runs", "none batch 8"), lossless.LosslessRun),
        ("lossless", (), lossless.LosslessFigure),
        ("leaks", ("arms", "edsd"), leaks.LeakRow),
        ("leaks", (), leaks.LeaksFigure),
        ("startup", ("arms", "edsd"), startup.Starts),
        ("startup", (), startup.StartupFigure),
        ("served", (), served.ServedFigure),
        ("clients", (), clients.ClientsFigure),
    ],
)
def test_results_keep_the_form_of_the_committed_ones(
    name: str, way: tuple[str, ...], row: type
) -> None:
    held = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    for step in way:
        held = held[step]
    required = {each.name for each in fields(row) if each.default is not None}
    optional = {each.name for each in fields(row)} - required
    assert required <= held.keys() <= required | optional | {"provenance"}


def test_leaks_against_the_fake_server(plan: FigurePlan) -> None:
    data, page = leaks.measure(plan)
    row = data.arms["edsd"]
    assert row.unexpected == []
    assert row.load_at_end == leaks.InUse(0, 0)
    assert row.retractions > 0
    assert sum(row.outcomes.values()) == 120
    assert row.outcomes.keys() >= {"disconnect: left", "bad_grammar: 400"}
    assert row.passed == row.memory_flat
    assert "bad_input: 400" in page


def test_a_leak_is_found(plan: FigurePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "IDLE_TIMEOUT_S", 0.5)
    arm = ServeArm("edsd", "EDSD", plan.edsd)
    leaky = Engine(plan.engine.target, python=plan.engine.python, extra_flags=("--leak",))
    row = leaks.run_arm(
        FigurePlan(leaky, plan.eagle3, plan.edsd, None, plan.work, plan.results), arm, 110
    )
    assert row.load_at_end.tokens > 0
    assert not row.passed


def test_wrong_requests_against_the_fake_server(
    plan: FigurePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(wrong_values.wrong_requests(20))
    monkeypatch.setattr(
        wrong_requests,
        "outcome_of",
        lambda client, request: "500" if request == every[4] else "400",
    )
    figure, page = wrong_requests.measure(plan, 20)
    row = figure.arms["edsd"]
    assert (row.statuses, row.deaths, row.neighbours, row.changed) == (
        {"400": 19, "500": 1},
        0,
        3,
        0,
    )
    assert row.culprits == [f"500 {every[4].name}"]
    assert not row.passed
    assert "HARM DONE" in page


def test_startup_against_the_fake_server(plan: FigurePlan) -> None:
    data, page = startup.measure(plan)
    assert [len(row.startup_s) for row in data.arms.values()] == [1, 1, 1]
    assert all(row.ready_bytes[0] > 2**20 for row in data.arms.values())
    assert "MiB when ready" in page
