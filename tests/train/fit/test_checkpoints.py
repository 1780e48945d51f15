"""A checkpoint is whole or not at all, and the one before it stays."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sgl_entropy.train.fit.checkpoints import Checkpoints, FitState
from sgl_entropy.train.fit.costs import Costs, EpochCost
from sgl_entropy.train.fit.run_identity import Change, RunIdentity


def state(step: int) -> FitState:
    chance = torch.Generator().manual_seed(step)
    return FitState(
        identity=RunIdentity({}, {"dtype": "float32"}, "", [1, 2], "digest"),
        step=step,
        costs=Costs({1: EpochCost(3, 2)}),
        seconds=1.5,
        changes=[Change(1, {"fit.clip": [1.0, 0.5]})],
        drafter={"fc": torch.randn(100, 100, generator=chance)},
        optimizer=[{}],
        tap_scale=torch.ones(2),
    )


def step_of(kept: Checkpoints) -> int:
    found = kept.load()
    assert found is not None
    return found.step


def held(folder: Path) -> Checkpoints:
    """Of steps 1 and 2."""
    kept = Checkpoints(folder)
    assert kept.load() is None
    kept.save(state(1))
    kept.save(state(2))
    return kept


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "one byte": flip,
    "other content": lambda path: torch.save({"weights": 1}, path),
    "no torch file": lambda path: path.write_text("<html>"),
}


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As a full disk: what is written beyond is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    found = held(tmp_path).load()
    assert found is not None
    assert torch.equal(found.drafter["fc"], state(2).drafter["fc"])
    for name in ("identity", "step", "costs", "seconds", "changes"):
        assert getattr(found, name) == getattr(state(2), name), name


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    held(tmp_path)
    damage(tmp_path / "checkpoint.pt")
    again = Checkpoints(tmp_path)
    found = again.load()
    assert found is not None
    assert found.step == 1
    assert str(tmp_path / "checkpoint.pt") in again.note
    assert "step 1" in again.note
    # What is damaged never takes the place of what is not.
    again.save(state(3))
    cut(tmp_path / "checkpoint.pt")
    assert step_of(Checkpoints(tmp_path)) == 1


def test_two_damaged_ones_are_an_error_that_names_both(tmp_path: Path) -> None:
    kept = held(tmp_path)
    cut(kept.path)
    kept.previous.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged") as error:
        Checkpoints(tmp_path).load()
    for path in (kept.path, kept.previous):
        assert str(path) in str(error.value)


def test_a_kill_between_two_renames_loses_one_generation(tmp_path: Path) -> None:
    kept = held(tmp_path)
    kept.path.unlink()
    again = Checkpoints(tmp_path)
    assert step_of(again) == 1
    assert "missing" in again.note


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    kept = held(tmp_path)
    with (
        files_no_larger_than(10_000),
        pytest.raises(OSError, match="the same command goes on") as error,
    ):
        kept.save(state(3))
    assert f"{kept.path}: cannot be written: File too large. {kept.path} is" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
    ]
    again = Checkpoints(tmp_path)
    assert step_of(again) == 2
    assert not again.note


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """A folder in its place cannot be opened: that is said, and nothing older taken."""
    kept = held(tmp_path)
    kept.path.unlink()
    kept.path.mkdir()
    with pytest.raises(OSError, match=r"checkpoint\.pt"):
        Checkpoints(tmp_path).load()


def test_no_room_to_read_a_checkpoint_does_not_make_it_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told to remove what is damaged would lose both."""
    held(tmp_path)

    def no_room(*given: object, **more: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nframe #0")

    monkeypatch.setattr(torch, "load", no_room)
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read: .*allocate memory$"):
        Checkpoints(tmp_path).load()


def test_a_full_disk_names_the_one_that_is_whole(tmp_path: Path) -> None:
    fresh = Checkpoints(tmp_path)
    with files_no_larger_than(10_000), pytest.raises(OSError, match="begins anew"):
        fresh.save(state(1))
    cut(held(tmp_path).path)
    kept = Checkpoints(tmp_path)
    kept.load()
    with files_no_larger_than(10_000), pytest.raises(OSError, match=f"{kept.previous} is the last"):
        kept.save(state(3))
