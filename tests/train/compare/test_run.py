"""Comparisons: their statistics on counts made by hand, and a small one from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.evaluate.offline import chat_prompts, judged
from sgl_entropy.train.compare.comparison_report import page, table
from sgl_entropy.train.compare.file import load_comparison
from sgl_entropy.train.compare.records import FitRecord, JudgedBy, JudgedFit
from sgl_entropy.train.compare.summary import summarise
from tests.engine import pair

Prompts = list[tuple[str, int, int]]
FIT = FitRecord(9, 10.0, "a CPU thread", {"1": {"layer_rows": 5, "head_rows": 4}}, 1e12)
RESULTS = Path(__file__).resolve().parents[3] / "bench" / "results" / "training"


def row(arm: str, seed: int, prompts: Prompts, fit: FitRecord = FIT) -> JudgedFit:
    return JudgedFit(arm, "", seed, "EDSD", [1, 2], JudgedBy("b", 1, 4, 30), fit, prompts)


def test_tau_is_pooled_in_groups_and_averaged_over_them() -> None:
    rows = [row("a", 0, [("x", 90, 30), ("x", 10, 10), ("y", 20, 20)])]
    arm = summarise(rows, "a").arms["a"]
    assert arm.tau_by_group == {"x": 2.5, "y": 1.0}
    assert arm.tau == 1.75
    assert arm.against is None


def test_the_ratio_is_paired() -> None:
    """Prompts differ threefold, the arms by exactly 10 % on each: only pairing can see that."""
    easy = [("x", 100 * (1 + i % 3), 100) for i in range(20)]
    rows = [row("a", 0, easy), row("b", 0, [(g, round(1.1 * t), c) for g, t, c in easy])]
    arms = summarise(rows, "a").arms
    against = arms["b"].against
    assert against
    assert against.ratio_interval == pytest.approx((1.1, 1.1), abs=1e-3)
    assert against.differs
    assert arms["a"].interval[1] - arms["a"].interval[0] > 0.3


def test_seeds_that_scatter_widen_the_interval() -> None:
    prompts = [("x", 200, 100)] * 10
    better, worse = [("x", 240, 100)] * 10, [("x", 170, 100)] * 10
    rows = [row("a", s, prompts) for s in (0, 1)]
    rows += [row("b", 0, better), row("b", 1, worse)]
    arm = summarise(rows, "a").arms["b"]
    assert arm.against
    assert arm.against.ratio == pytest.approx(1.025)
    assert arm.against.ratio_interval == pytest.approx((0.85, 1.2), abs=1e-3)
    assert not arm.against.differs
    assert arm.tau_by_seed == [2.4, 1.7]
    assert "no difference" in table(summarise(rows, "a"))


def test_acceptance_by_position_is_pooled_over_seeds() -> None:
    """Given that all before it were accepted; and not said of records that do not hold it."""
    prompts = [("x", 30, 20), ("y", 15, 10)]
    rows = [replace(row("a", s, prompts), accepted_at=[9 + s, 4, 0]) for s in (0, 1)]
    assert summarise(rows, "a").arms["a"].by_position == [0.3167, 0.4211, 0.0]
    assert "| acceptance of draft | 1 | 2 | 3 |" in page(summarise(rows, "a"), rows, "t", 1)
    older = [rows[0], row("a", 1, prompts)]
    assert summarise(older, "a").arms["a"].by_position is None
    assert "acceptance of draft" not in page(summarise(older, "a"), older, "t", 1)


def test_costs_are_compared_too() -> None:
    prompts = [("x", 2, 1)]
    fewer = {"1": {"layer_rows": 4000, "head_rows": 2000}}
    more = {"1": {"layer_rows": 3000, "head_rows": 2000}}
    more |= {"2": {"layer_rows": 5000, "head_rows": 3000}}
    costs = [(10.0, 1e12, more), (7.0, 6e11, fewer), (30.0, 1e12, more), (9.0, 6e11, fewer)]
    rows = [
        row(arm, seed, prompts, replace(FIT, seconds=seconds, flops=flops, epochs=epochs))
        for (arm, seed), (seconds, flops, epochs) in zip(
            [("a", 0), ("b", 0), ("a", 1), ("b", 1)], costs, strict=True
        )
    ]
    figures = summarise(rows, "a")
    arm = figures.arms["b"]
    assert (arm.seconds, arm.seconds_by_seed) == (8.0, [7.0, 9.0])
    assert arm.against
    over = (arm.against.seconds_ratio, arm.against.flops_ratio, arm.against.rows_ratio)
    assert over == (0.4, 0.6, 0.5)
    assert (arm.layer_rows, arm.head_rows) == (4000, 2000)
    text = page(figures, rows, "t", 1)
    assert "| a | 8 | 5 | 1.0 | 10, 30 |  |  |  |" in text
    assert "| b | 4 | 2 | 0.6 | 7, 9 | -50.0 % | -40.0 % | -60.0 % |" in text


def test_other_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="b, seed 0: judged on other prompts"):
        summarise([row("a", 0, [("x", 2, 1)]), row("b", 0, [("y", 2, 1)])], "a")


@pytest.mark.parametrize("name", ["architecture", "tokens"])
def test_a_committed_comparison_is_summarised_as_it_was(name: str) -> None:
    """To the last digit, intervals and learning curves too; also from records of before there were
    hashes and acceptance by place."""
    data = json.loads((RESULTS / f"{name}.json").read_text())
    runs = [JudgedFit.from_json(run) for run in data["runs"]]
    assert json.loads(json.dumps([run.to_json() for run in runs])) == data["runs"]
    figures = summarise(runs, data["baseline"])
    again = json.loads(json.dumps(figures.to_json()))
    assert again["curves"] == data["curves"]
    for arm, known in data["arms"].items():
        assert {key: again["arms"][arm][key] for key in known} == known
    text = (RESULTS / f"{name}.md").read_text()
    for line in table(figures).splitlines()[1 : 1 + len(figures.arms)]:
        arm, tau = line.split()[:2]
        assert f"| {arm} | {tau} |" in text


COMPARISONS = Path(__file__).resolve().parents[3] / "bench" / "drafters" / "comparisons"
ARMS = [{"name": "a", "algorithm": "EDSD"}, {"name": "b", "algorithm": "EAGLE3"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arms": ARMS, "seed": [1]}, "unknown key seed"),
        ({"arms": []}, "arms must be a list of tables"),
        ({"arms": ARMS, "seeds": 3}, "seeds must be a list"),
        ({"arms": ARMS, "set": "fit.epochs=3"}, "set must be a list of strings"),
        ({"arms": ARMS, "baseline": "c"}, "the baseline 'c' is none of the arms"),
        ({"arms": [*ARMS, ARMS[0]]}, "two arms have the same name"),
        ({"arms": [{"name": "a"}]}, "an arm has name, algorithm"),
        ({"arms": [{"name": "../a", "algorithm": "EDSD"}]}, "letters, digits"),
        ({"arms": [{"name": "a", "algorithm": "EAGLE"}]}, "arm a: algorithm must be one of"),
        ({"arms": [{**ARMS[0], "set": ["fit.epoch=3"]}]}, r"arm a: .*unknown key fit\.epoch"),
        ({"arms": [ARMS[0], {**ARMS[1], "set": ["work=/x"]}]}, "must share one work folder"),
        ({"arms": [{**ARMS[0], "curve": 1}]}, "arm a: curve must be a name"),
        ({"arms": [{**one, "curve": "x"} for one in ARMS]}, "differ in more than fit.answer_tok"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_comparison(path)


def test_what_all_arms_set_yields_to_the_command_line_and_to_their_own(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    arms = [ARMS[0], {**ARMS[1], "set": ["fit.rows=7"]}]
    shared = ["fit.epochs=9", "fit.rows=8", "fit.steps=[2]"]
    path.write_text(json.dumps({"arms": arms, "set": shared}))
    a, b = (arm.settings.fit for arm in load_comparison(path, ["fit.epochs=5"]).recipes)
    assert (a.epochs, a.rows, a.steps) == (5, 8, (2,))
    assert (b.epochs, b.rows, b.steps) == (5, 7, (2,))


def test_some_arms_and_seeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    arms = [*ARMS, {"name": "c", "algorithm": "EAGLE3"}]
    path.write_text(json.dumps({"arms": arms, "seeds": [0, 1, 2], "baseline": "b"}))
    whole = load_comparison(path)
    part = whole.part(["c"], [2, 2])
    assert [(job.recipe.name, job.seed) for job in part.jobs()] == [("b", 2), ("c", 2)]
    assert whole.part([], []) == whole
    with pytest.raises(ValueError, match="there is no d, but a, b, c"):
        whole.part(["d"], [])


@pytest.mark.parametrize("path", sorted(COMPARISONS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_committed_comparisons_can_be_read(path: Path) -> None:
    comparison = load_comparison(path)
    assert len(comparison.jobs()) == len(comparison.recipes) * len(comparison.seeds) >= 2
    # Arms that are set alike would compare nothing.
    assert len({(arm.algorithm, arm.settings) for arm in comparison.recipes}) == len(
        comparison.recipes
    )


def _judged_anew(judge: object) -> None:
    raise RuntimeError("judged anew")


@pytest.mark.slow
def test_a_comparison_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two arms; then another seed, in two processes, and nothing that is done is done again; tau
    is what `drafter eval` counts."""
    monkeypatch.setattr(pair, "LAYERS", 8)  # EAGLE-3's three taps differ from 7 layers on
    target = pair.write_target(tmp_path / "target")
    work = tmp_path / "work"
    work.mkdir()
    chance = torch.Generator().manual_seed(5)
    prompts = [
        {"prompt_id": i, "tokens": torch.randint(3, 90, (6,), generator=chance).tolist()}
        for i in range(24)
    ]
    (work / "prompts.jsonl").write_text("\n".join(json.dumps(p) for p in prompts))
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    (benchmarks / "x.txt").write_text("Hello\nabc def\n")
    (benchmarks / "y.txt").write_text("0 1 2 3\n")
    settings = {
        "target": str(target),
        "work": str(work),
        "generate": {"max_new_tokens": 40, "workers": 1, "slots": 8, "extra_layers": [5]},
        "drafter": {"edsd_layers": [0, 3], "draft_vocab_size": 64},
        "fit": {"epochs": 2, "steps": [1, 2], "rows": 60, "validation_every": 9},
        "evaluate": {"benchmarks": str(benchmarks), "max_new_tokens": 30},
    }
    (tmp_path / "base.json").write_text(json.dumps(settings))
    config = tmp_path / "compare.json"
    arms = [
        {"name": "layers", "algorithm": "EDSD", "set": ["drafter.edsd_layers=[3, 5]"]},
        {"name": "eagle3", "algorithm": "EAGLE3", "set": ["fit.mask_gamma=30"], "curve": "c"},
    ]
    given = {"base": "base.json", "baseline": "eagle3", "arms": arms}
    config.write_text(json.dumps(given))
    assert main(["train", "generate", "--config", str(tmp_path / "base.json")]) == 0

    out = tmp_path / "out.json"
    page = tmp_path / "out.md"
    words = ["train", "compare", "--config", str(config), "--json", str(out), "--page", str(page)]
    assert main([*words, "--workers", "1"]) == 0
    first = json.loads(out.read_text())["runs"]
    config.write_text(json.dumps({**given, "seeds": [0, 1]}))
    assert main(words) == 0
    found = json.loads(out.read_text())
    assert list(found["arms"]) == ["layers", "eagle3"]
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("layers", "eagle3")
    ]
    assert found["runs"][:2] == first
    assert first[0]["layers"] == [3, 5]
    assert len(first[1]["layers"]) == 3
    assert found["groups"] == ["x", "y"]
    plain, masked = found["arms"]["layers"], found["arms"]["eagle3"]
    assert masked["head_rows"] < plain["head_rows"]
    assert masked["layer_rows"] == plain["layer_rows"]
    assert found["provenance"]["commit"]
    lines = page.read_text().splitlines()
    assert lines[0] == "# Training comparison: compare"
    assert f"| eagle3 | {masked['tau']:.3f} |" in "\n".join(lines)
    taus = [f"{tau:.3f}" for tau in plain["tau_by_group"].values()]
    assert f"| layers | {' | '.join(taus)} |" in lines
    for arm in ("layers", "eagle3"):
        by_position = found["arms"][arm]["by_position"]
        accepted = [f"{one:.3f}" for one in by_position]
        assert len(accepted) == 4
        assert f"| {arm} | {' | '.join(accepted)} |" in lines
        counts = [run["accepted_at"] for run in found["runs"] if run["arm"] == arm]
        ran = [run["prompts"] for run in found["runs"] if run["arm"] == arm]
        emitted = sum(t for prompts in ran for _, t, _ in prompts)
        cycles = sum(c for prompts in ran for _, _, c in prompts)
        beyond = cycles + sum(map(sum, counts)) - emitted
        assert 0 <= beyond <= sum(map(len, ran)), "what an answer's last cycle may be cut by"
        assert by_position[0] == pytest.approx(sum(c[0] for c in counts) / cycles, abs=1e-4)
    assert lines[-1].startswith("Measured ")
    assert found["curves"]["c"]["points"] == [
        [found["runs"][1]["fit"]["answer_tokens"], found["arms"]["eagle3"]["tau"]]
    ]
    assert "against eagle3" in capsys.readouterr().out

    # Nothing is fitted, generated or judged a second time.
    for name in ("run._fit_quietly", "judge.greedy_answers", "judge.draft_answer"):
        monkeypatch.setattr(f"sgl_entropy.train.compare.{name}", None)
    assert main(words) == 0
    assert json.loads(out.read_text())["arms"] == found["arms"]

    # Nor is what was judged before the records held dtype and contents, wherever the prompts are.
    result = work / "compare" / "layers" / "seed-0" / "result.json"
    row = json.loads(result.read_text())
    asked = row["evaluate"]
    assert asked["dtype"] == "float32"
    older = {k: v for k, v in asked.items() if k not in ("dtype", "sha256")}
    before = {k: v for k, v in row.items() if k != "layers"}
    result.write_text(json.dumps({**before, "evaluate": older}))
    assert main(words) == 0
    assert json.loads(out.read_text())["runs"][0]["layers"] == [3, 5]
    result.write_text(json.dumps(row))

    # But other prompts under the same name, or another arithmetic, are judged anew.
    monkeypatch.setattr("sgl_entropy.train.compare.judge.Judge._generate", _judged_anew)
    settings["evaluate"]["dtype"] = "bfloat16"  # type: ignore[index]
    (tmp_path / "base.json").write_text(json.dumps(settings))
    assert main(words) == 2
    settings["evaluate"]["dtype"] = "float32"  # type: ignore[index]
    (tmp_path / "base.json").write_text(json.dumps(settings))
    (benchmarks / "y.txt").write_text("3 2 1 0\n")
    assert main(words) == 2
    assert capsys.readouterr().err.count("judged anew") == 2
    (benchmarks / "y.txt").write_text("0 1 2 3\n")

    # Made before there was a setting: what that is by default is what was done.
    record = work / "compare" / "layers" / "seed-0" / "fit.json"
    made = json.loads(record.read_text())
    for name, status in (("optimizer", 0), ("rows", 2)):
        fit = {key: value for key, value in made["recipe"]["fit"].items() if key != name}
        record.write_text(json.dumps({**made, "recipe": {**made["recipe"], "fit": fit}}))
        assert main(words) == status
    record.write_text(json.dumps(made))
    assert "the arm layers was changed since" in capsys.readouterr().err

    # An arm that was changed since must not pass for what it was.
    changed = [{**arms[0], "set": ["drafter.edsd_layers=[3, 4]"]}, arms[1]]
    config.write_text(json.dumps({**given, "arms": changed}))
    assert main(words) == 2
    assert "the arm layers was changed since" in capsys.readouterr().err

    ids = chat_prompts(target, {"x": ["Hello", "abc def"], "y": ["0 1 2 3"]}, 200)
    for run in found["runs"]:
        folder = work / "compare" / run["arm"] / f"seed-{run['seed']}" / "drafter"
        parts = sorted(judged(target, folder, ids, 4, 30), key=lambda one: one.number)
        counted = [[one.group, one.figures.tokens, one.figures.cycles] for one in parts]
        assert counted == run["prompts"]
    report = tmp_path / "evaluated.json"
    words = ["train", "evaluate", "--config", str(tmp_path / "base.json"), "--json", str(report)]
    assert main([*words, "--drafter", str(folder)]) == 0
    evaluated = json.loads(report.read_text())
    assert list(evaluated["groups"]) == ["x", "y"]
    assert evaluated["per_prompt"] == found["runs"][-1]["prompts"]
    assert [evaluated["tokens"], evaluated["cycles"]] == [
        sum(counts[at] for counts in found["runs"][-1]["prompts"]) for at in (1, 2)
    ]
