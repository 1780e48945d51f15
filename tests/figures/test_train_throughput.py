"""The straightforward loop learns exactly what ours learns; the figure counts what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sgl_entropy.base.typed_json import from_json
from sgl_entropy.cli import main
from sgl_entropy.figures.plain_loop import Straightforward
from sgl_entropy.figures.store_bytes import bytes_a_token
from sgl_entropy.figures.train_throughput import (
    OURS,
    PARTS,
    PLAIN,
    Throughput,
    ThroughputJob,
    Trainer,
    make_trainer,
    measure,
    spread_out,
    step_parts,
)
from sgl_entropy.figures.train_throughput_page import page
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.samples.store import Entry, Store
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import TAPS, VOCAB
from tests.train.fit.test_processes import work_folder
from tests.train.plan.test_counts import settings_of

TWO_EPOCHS = ["fit.epochs=2", "fit.steps=[1, 3]", "fit.mask_gamma=20", "fit.rows=40"]
TWO_EPOCHS += ["drafter.eagle3_layers=[0, 1, 2]"]
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "training"
OPTIONS = ["drafter.fuse_residual=true", "drafter.fuse_tokens=true"]


@pytest.fixture
def settings(tiny_store: Store, tiny_folder: Path, tmp_path: Path) -> TrainSettings:
    work = work_folder(tmp_path / "work", tiny_store)
    return load_settings(None, settings_of(work, tiny_folder, [*TWO_EPOCHS, *OPTIONS]))


def loop(settings: TrainSettings, name: str, algorithm: str = "EDSD") -> Trainer:
    return make_trainer(ThroughputJob(Workspace.of(settings), algorithm, name))  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["EDSD", "EAGLE3"])
def test_both_loops_learn_the_same(settings: TrainSettings, algorithm: str) -> None:
    """Losses, counts and right guesses of every draft step, and after two epochs the weights, with
    rows left out by Mask-p and by the draft vocabulary."""
    ours, plain = (
        make_trainer(ThroughputJob(Workspace.of(settings), algorithm, arm)) for arm in (OURS, PLAIN)
    )  # type: ignore[arg-type]
    assert isinstance(ours, Fit)
    assert isinstance(plain, Straightforward)
    assert int(ours.drafter.t2d.sum()) < VOCAB
    plans = [ours.plan(epoch) for epoch in range(2)]
    assert plans == [plain.plan(epoch) for epoch in range(2)]
    total, left_out = sum(map(len, plans)), 0
    for epoch, plan in enumerate(plans):
        for entries in plan:
            mine, other = (one.learn(entries, epoch, total) for one in (ours, plain))
            assert [(f.counted, f.right, f.rows) for f in mine] == [
                (f.counted, f.right, f.rows) for f in other
            ]
            assert [f.loss for f in mine] == pytest.approx([f.loss for f in other], rel=1e-4)
            left_out += sum(f.rows - f.counted for f in mine)
    assert left_out > 10
    for (weight, one), two in zip(
        ours.drafter.named_parameters(), plain.drafter.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-4, msg=weight)


@pytest.mark.parametrize("algorithm", ["EDSD", "EAGLE3"])
def test_both_loops_leave_the_same_chains_behind(settings: TrainSettings, algorithm: str) -> None:
    """``reached_only``: ours unrolls the chains that are right so far alone, the other all."""
    given = replace(
        settings.fit, reached_only=True, steps=(3,), epochs=4, mask_gamma=5.0, learning_rate=5e-3
    )
    settings = replace(settings, fit=given)
    ours, plain = (
        make_trainer(ThroughputJob(Workspace.of(settings), algorithm, arm)) for arm in (OURS, PLAIN)
    )  # type: ignore[arg-type]
    reached = torch.zeros(3)
    for epoch in range(4):
        for entries in ours.plan(epoch):
            mine, other = (one.learn(entries, epoch, 10**6) for one in (ours, plain))
            assert [(f.counted, f.right, f.rows) for f in mine] == [
                (f.counted, f.right, f.rows) for f in other
            ]
            assert [f.loss for f in mine] == pytest.approx([f.loss for f in other], rel=1e-3)
            assert mine[1].rows <= mine[0].right
            assert mine[2].rows <= mine[1].right
            reached += torch.tensor([f.rows for f in mine])
    assert 0.9 * reached[0] > reached[1] > reached[2] > 10
    for (weight, one), two in zip(
        ours.drafter.named_parameters(), plain.drafter.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3, msg=weight)


def test_no_logits_of_the_whole_vocabulary_are_made(settings: TrainSettings) -> None:
    """In ours no operator takes a row as wide as the target's vocabulary; in the straightforward
    loop some do."""
    for name, expected in ((OURS, False), (PLAIN, True)):
        trainer = loop(settings, name)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            trainer.learn(trainer.plan(1)[0], 1, 10)
        shapes = [s for event in seen.events() for s in event.input_shapes or () if len(s) > 1]
        assert len(shapes) > 100
        assert any(shape[-1] == VOCAB for shape in shapes) == expected


@pytest.mark.parametrize("name", [OURS, PLAIN])
def test_parts_are_those_of_a_step(settings: TrainSettings, name: str) -> None:
    """Every range that the profiler is asked for is in the loop, and they add up to the step."""
    trainer = loop(settings, name)
    picked = [(1, trainer.plan(1)[0])]
    parts = step_parts(trainer, picked, 10)
    assert list(parts) == list(PARTS)
    assert all(seconds > 0 for seconds in parts.values()), parts
    assert parts["rest"] < 0.5 * sum(parts.values()), parts


def test_bytes_of_a_token_by_layers(tiny_store: Store, tiny_target: PlainTarget) -> None:
    d = tiny_target.hidden_size
    stored = bytes_a_token(tiny_store, {"EDSD": (1, 2), "EAGLE3": TAPS, "other": (1, 3)}, 200)
    assert stored.tokens >= 200
    two, three, whole = stored.layers
    assert [row.drafter for row in stored.layers] == ["EDSD", "EAGLE3", "all in the store"]
    assert three.bytes - two.bytes == pytest.approx(2 * d, rel=0.1)
    assert whole.bytes == pytest.approx(three.bytes, rel=0.02)
    assert (two.formula, three.formula) == (2 * d * 3 + 12, 2 * d * 4 + 12)


def figure_of(data: dict[str, Any]) -> Throughput:
    rest = {name: value for name, value in data.items() if name not in ("provenance", "note")}
    return from_json(Throughput, rest)


def test_the_committed_figure_can_be_read() -> None:
    """Also with the parts that it was measured by before there were ranges."""
    data = json.loads((RESULTS / "throughput.json").read_text())
    for arm in data["arms"].values():
        arm.pop("tensors", None)  # of the measurement before
    text = page(figure_of(data))
    ours = data["arms"][OURS]
    assert f"| ours | {ours['rows_per_s']:,.0f} |" in text
    for part in data["profile"][OURS]:
        assert f"| {part}" in text


@pytest.mark.parametrize("wanted", [0, 1, 5, 9])
def test_batches_are_of_every_epoch(wanted: int) -> None:
    plans: list[list[list[Entry]]] = [[[] for _ in range(4)] for _ in range(2)]
    if wanted in (0, 1):
        with pytest.raises(ValueError, match=f"--batches {wanted}: between 1 and 4"):
            spread_out(plans, wanted)
    elif wanted == 9:
        assert len(spread_out(plans, wanted)) == 8
    else:
        assert [epoch for epoch, _ in spread_out(plans, wanted)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["fit.online=true"], "fit.online is set"),
        (["fit.prompt_rows=true"], "fit.prompt_rows is set"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, extra: list[str], message: str
) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    given = load_settings(None, settings_of(work, tiny_folder, [*TWO_EPOCHS, *extra]))
    with pytest.raises(ValueError, match=message):
        measure(Workspace.of(given), "EDSD", 2, print)


@pytest.mark.slow
def test_the_command(
    tiny_store: Store, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm of a comparison file, measured and written with its page."""
    work = work_folder(tmp_path / "work", tiny_store)
    config, out = tmp_path / "compare.json", tmp_path / "out.json"
    sets = settings_of(work, tiny_folder, TWO_EPOCHS)
    arms = [
        {"name": "a", "algorithm": "EAGLE3"},
        {"name": "b", "algorithm": "EDSD", "set": OPTIONS},
    ]
    config.write_text(json.dumps({"arms": arms, "set": sets}))
    words = ["train", "benchmark", "--config", str(config), "--batches", "4"]
    assert main([*words, "--arms", "c"]) == 2
    assert "there is no c, but a, b" in capsys.readouterr().err
    assert main([*words, "--arms", "a,b"]) == 2
    assert "--arms: benchmark takes one arm" in capsys.readouterr().err
    written = tmp_path / "out.md"
    assert main([*words, "--arms", "b", "--json", str(out), "--page", str(written)]) == 0
    figures = figure_of(json.loads(out.read_text()))
    assert list(figures.arms) == [OURS, PLAIN]
    assert figures.arms[OURS].rows == figures.arms[PLAIN].rows > 0
    assert figures.arms[OURS].seconds_over_ours == 1
    assert figures.losses[OURS].all_differ < 1e-3
    assert figures.drafter["edfuse_residual"] is True
    assert figures.arms[PLAIN].memory.needed > 0
    text = written.read_text()
    assert text.startswith(page(figures))
    assert "| straightforward |" in text
    assert "Measured 20" in text
    assert not (work / "edsd").exists(), "nothing is left in the work folder"
