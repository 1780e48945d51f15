"""The straightforward loop learns exactly what ours learns; the figure counts what it says."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sgl_entropy.cli import main
from sgl_entropy.figures import stopwatch
from sgl_entropy.figures.peak_memory import memory_of
from sgl_entropy.figures.plain_loop import Straightforward
from sgl_entropy.figures.store_bytes import bytes_a_token
from sgl_entropy.figures.train_throughput import (
    OURS,
    PLAIN,
    Job,
    largest_tensors,
    make_trainer,
    measure,
    spread_out,
)
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
OPTIONS = ["drafter.fuse_residual=true", "drafter.fuse_tokens=true"]


@pytest.fixture
def settings(tiny_store: Store, tiny_folder: Path, tmp_path: Path) -> TrainSettings:
    work = work_folder(tmp_path / "work", tiny_store)
    return load_settings(None, settings_of(work, tiny_folder, [*TWO_EPOCHS, *OPTIONS]))


@pytest.mark.parametrize("algorithm", ["EDSD", "EAGLE3"])
def test_both_loops_learn_the_same(settings: TrainSettings, algorithm: str) -> None:
    """Losses, counts and right guesses of every draft step, and after two epochs the weights, with
    rows left out by Mask-p and by the draft vocabulary."""
    ours, plain = (make_trainer(Job(settings, algorithm, arm)) for arm in (OURS, PLAIN))  # type: ignore[arg-type]
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
    for (name, one), two in zip(
        ours.drafter.named_parameters(), plain.drafter.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("algorithm", ["EDSD", "EAGLE3"])
def test_both_loops_leave_the_same_chains_behind(settings: TrainSettings, algorithm: str) -> None:
    """``reached_only``: ours unrolls the chains that are right so far alone, the other all."""
    given = replace(
        settings.fit, reached_only=True, steps=(3,), epochs=4, mask_gamma=5.0, learning_rate=5e-3
    )
    settings = replace(settings, fit=given)
    ours, plain = (make_trainer(Job(settings, algorithm, arm)) for arm in (OURS, PLAIN))  # type: ignore[arg-type]
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
    for (name, one), two in zip(
        ours.drafter.named_parameters(), plain.drafter.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3, msg=name)


def test_no_logits_of_the_whole_vocabulary_are_made(settings: TrainSettings) -> None:
    """Ours never holds a row as wide as the target's vocabulary; the straightforward loop does."""
    for arm, expected in ((OURS, False), (PLAIN, True)):
        trainer = make_trainer(Job(settings, "EDSD", arm))
        held = largest_tensors(trainer, (1, trainer.plan(1)[0]), 10)
        assert (held["wide"]["bytes"] > 0) == expected
        assert held["largest"]["bytes"] == 4 * math.prod(held["largest"]["shape"]) > 0
        if expected:
            assert held["wide"]["shape"][-1] == VOCAB
            assert held["wide"]["dtype"] == "float32"


def test_parts_add_up_and_leave_nothing_behind(settings: TrainSettings) -> None:
    trainer = make_trainer(Job(settings, "EDSD", OURS))
    table = stopwatch.places(trainer)
    before = [vars(owner).get(name) for owner, name, _ in table]
    began = time.perf_counter()
    with stopwatch.timing(table) as clock, clock.part("rest"):
        trainer.learn(trainer.plan(1)[0], 1, 10)
    took = time.perf_counter() - began
    assert 0.8 * took < sum(clock.seconds.values()) <= took
    assert all(seconds > 0 for seconds in clock.seconds.values()), clock.seconds
    assert [vars(owner).get(name) for owner, name, _ in table] == before


def test_a_part_inside_another_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    clock = stopwatch.Clock()
    with clock.part("head"), clock.part("mlp"), clock.part("head"):
        pass
    assert (clock.seconds["head"], clock.seconds["mlp"]) == (3.0, 2.0)


def _nothing(size: int) -> int:
    return size


def _allocate(size: int) -> None:
    bytearray(b"x" * size)


def test_memory_is_that_of_the_work() -> None:
    held = memory_of(_nothing, _allocate, 200_000_000)
    assert 200_000_000 <= held.peak - held.held < 450_000_000
    assert held.needed >= 200_000_000


def test_bytes_of_a_token_by_layers(tiny_store: Store, tiny_target: PlainTarget) -> None:
    d = tiny_target.hidden_size
    held = bytes_a_token(tiny_store, {"EDSD": (1, 2), "EAGLE3": TAPS, "other": (1, 3)}, 200)
    assert held["tokens"] >= 200
    two, three, whole = held["layers"]
    assert [row["drafter"] for row in held["layers"]] == ["EDSD", "EAGLE3", "all in the store"]
    assert three["bytes"] - two["bytes"] == pytest.approx(2 * d, rel=0.1)
    assert whole["bytes"] == pytest.approx(three["bytes"], rel=0.02)
    assert (two["formula"], three["formula"]) == (2 * d * 3 + 12, 2 * d * 4 + 12)


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
    page = tmp_path / "out.md"
    assert main([*words, "--arms", "b", "--json", str(out), "--page", str(page)]) == 0
    held = json.loads(out.read_text())
    assert list(held["arms"]) == [OURS, PLAIN]
    assert held["arms"][OURS]["rows"] == held["arms"][PLAIN]["rows"] > 0
    assert held["arms"][OURS]["seconds_over_ours"] == 1
    assert held["losses"][OURS]["all_differ"] < 1e-3
    assert held["drafter"]["edfuse_residual"] is True
    text = page.read_text()
    assert "| straightforward |" in text
    assert "Measured 20" in text
    assert not (work / "edsd").exists(), "nothing is left in the work folder"
