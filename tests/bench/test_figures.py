"""The figures' arithmetic on made-up records, and each figure against the fake server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from sgl_entropy_bench import provenance
from sgl_entropy_bench.arms import Arm, Engine
from sgl_entropy_bench.client import Arrival, Generation
from sgl_entropy_bench.figures import hostile, leaks, lossless, speed, startup
from sgl_entropy_bench.figures.plan import (
    BENCHMARKS,
    Plan,
    Records,
    benchmark_prompts,
    in_parallel,
    write_results,
)
from sgl_entropy_bench.provenance import command_line
from sgl_entropy_bench.stats import break_even, slope, spread
from sgl_entropy_bench.windows import full_batch_window


def generation(times: Sequence[float], tokens: Sequence[int], cycles: int = 0) -> Generation:
    arrivals = tuple(Arrival(*row) for row in zip(times, tokens, strict=True))
    last = tokens[-1]
    return Generation(
        "", (), 1, last, cycles, last - 1, "length", 0.0, times[0], times[-1], arrivals
    )


def test_two_figures_side_by_side_do_not_share_a_log(plan: Plan) -> None:
    arm = plan.arms()[0]
    one, other = plan.server(arm), plan.server(arm)
    assert (one.log == other.log) == (one.port == other.port)


def test_records_of_other_code_are_not_resumed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    found = break_even(speedups)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_spread_and_slope() -> None:
    values = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (values.low, values.median, values.high) == (2.0, 3.0, 4.0)
    assert slope([(0, 10.0), (10, 30.0)]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_flatness_looks_past_the_first_quarter() -> None:
    settling = [(n, 100.0 + min(n, 25)) for n in range(1, 101)]
    assert leaks.flatness(settling)["memory_flat"]
    growing = [(n, 100.0 + 0.1 * n) for n in range(1, 101)]
    assert not leaks.flatness(growing)["memory_flat"]
    assert leaks.flatness(growing)["growth_share"] == pytest.approx(7.4 / 102.6, rel=1e-3)


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
        {"prompt": "b", "position": 1}
    ]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name in BENCHMARKS:
        rows = [{"question_id": i, "turns": [f"{name} {i}", "more"]} for i in range(6)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


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


@pytest.fixture
def plan(target: Path, prompts: Path, fake_python: str, tmp_path: Path) -> Plan:
    engine = Engine(target, python=fake_python, extra_flags=("--cycle-s", "0.005"))
    drafters = []
    for name in ("eagle3", "edsd"):
        drafters.append(tmp_path / name)
        drafters[-1].mkdir()
        (drafters[-1] / "model.safetensors").write_bytes(name.encode())
    work, results = tmp_path / "work", tmp_path / "results"
    return Plan(engine, drafters[0], drafters[1], prompts, work, results, quick=True)


def test_speed_against_the_fake_server(plan: Plan) -> None:
    data, page = speed.measure(plan, {1: 2, 4: 2})
    one = data["batch_sizes"]["1"]
    # 3 tokens a cycle. Times are this machine's: how busy it is, is nobody's business here.
    assert one["edsd"]["acceptance_length"] == pytest.approx(3.0, rel=0.15)
    assert one["edsd"]["batches"] == one["edsd"]["windows"] == 2
    assert one["none"]["step_cost"] == 1.0
    assert one["none"]["decode_speedup_paired"]["median"] == 1.0
    for row in (one["edsd"], data["batch_sizes"]["4"]["eagle3"]):
        assert row["decode_speedup"] == pytest.approx(
            row["acceptance_length"] / row["step_cost"], rel=0.01
        )
    assert set(data["break_even_batch_size"]) == {"eagle3", "edsd"}
    assert "none, batch 4" in page
    path = write_results(plan, "speed", data, page)
    assert path.name == "speed-quick.md"
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["provenance"]["inputs"]["edsd"]["weights_sha256"]
    assert str(plan.engine.target.parent) not in path.with_suffix(".json").read_text()


def test_leaks_against_the_fake_server(plan: Plan) -> None:
    data, page = leaks.measure(plan)
    row = data["arms"]["edsd"]
    assert row["unexpected"] == []
    assert row["load_at_end"] == {"requests": 0, "tokens": 0}
    assert row["retractions"] > 0
    assert sum(row["outcomes"].values()) == 120
    assert row["outcomes"].keys() >= {"disconnect: left", "bad_grammar: 400"}
    assert row["passed"] == row["memory_flat"]
    assert "bad_input: 400" in page


def test_a_leak_is_found(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "IDLE_TIMEOUT_S", 0.5)
    arm = Arm("edsd", "EDSD", plan.edsd)
    leaky = Engine(plan.engine.target, python=plan.engine.python, extra_flags=("--leak",))
    row = leaks.run_arm(
        Plan(leaky, plan.eagle3, plan.edsd, None, plan.work, plan.results), arm, 110
    )
    assert row["load_at_end"]["tokens"] > 0
    assert not row["passed"]


def test_startup_against_the_fake_server(plan: Plan) -> None:
    data, page = startup.measure(plan)
    assert [len(row["startup_s"]) for row in data["arms"].values()] == [1, 1, 1]
    assert all(row["ready_bytes"][0] > 2**20 for row in data["arms"].values())
    assert "MiB when ready" in page
