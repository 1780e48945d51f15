"""Kills and failing operations at every point: the package is the old one or the new one."""

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import FIRST, UPSTREAM, Mini, diff, snapshot
from patching_faults import Fault, injected, killed_at

from sgl_entropy.patching import PatchError, apply, journal, revert, status

VERBS = {"apply": apply, "revert": revert, "upgrade": apply}


class Case:
    """The same start again and again, with the two trees that may follow from it."""

    def __init__(self, mini: Mini, verb: str) -> None:
        self.mini, self.verb, self.act = mini, verb, VERBS[verb]
        self.series = mini.series
        if verb == "revert":
            apply(mini.install, self.series)
        elif verb == "upgrade":  # from an older series, which made a file that ours does not
            older = {**FIRST, "sglang/srt/old/gone.py": "x = 1\n"}
            patches = mini.patches
            apply(mini.install, mini.write_series(diff(UPSTREAM, older), folder="older"))
            mini.patches = patches
        self.start = mini.dist.parent / "start"
        shutil.copytree(mini.dist, self.start)
        self.before = snapshot(mini.dist)
        self.run()
        self.after = snapshot(mini.dist)
        assert self.before != self.after
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.mini.dist)
        shutil.copytree(self.start, self.mini.dist)

    def run(self) -> None:
        self.act(self.mini.install, self.series)

    def package(self) -> str:
        """Which of the two trees the package is; strays beside it do not count."""
        now = {n: data for n, data in snapshot(self.mini.dist).items() if not n.startswith(".")}
        return "before" if now == self.before else "after" if now == self.after else "a mixture"


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Thousands of runs; a kill does not depend on it, and the injected runs still count it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=VERBS)
def case(request, mini: Mini, monkeypatch) -> Case:
    scratch = mini.dist.parent / "tmp"  # a killed process leaves its temporary folder
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return Case(mini, request.param)


def test_kill_at_every_operation(case: Case, monkeypatch):
    seen = set()
    for number in itertools.count(1):
        case.reset()
        if not killed_at(number, case.run, monkeypatch, wait=True):
            break
        settled = status(case.mini.install, case.series)
        assert snapshot(case.mini.dist) in (case.before, case.after), f"operation {number}"
        seen.add(case.package())
        if any("half-finished" in note for note in settled.notes):
            assert case.package() == "before"
            seen.add("undone")
        case.run()
        assert snapshot(case.mini.dist) == case.after
    assert number > 20, "a loop over next to nothing"
    assert seen == {"before", "after", "undone"}


@pytest.mark.parametrize("case", ["upgrade"], indirect=True)
def test_kill_during_recovery(case: Case, monkeypatch):
    """A journal, half done, then a second kill at every point of the next run."""
    middle = _kill_in_the_middle(case, monkeypatch)
    left = Path(shutil.copytree(case.mini.dist, case.mini.dist.parent / "left"))
    for number in itertools.count(1):
        shutil.rmtree(case.mini.dist)
        shutil.copytree(left, case.mini.dist)
        if not killed_at(number, lambda: status(case.mini.install, case.series), monkeypatch):
            break
        status(case.mini.install, case.series)
        assert snapshot(case.mini.dist) in (case.before, case.after), (middle, number)
    assert number > 5


def _kill_in_the_middle(case: Case, monkeypatch) -> int:
    for number in itertools.count(1):
        case.reset()
        assert killed_at(number, case.run, monkeypatch, wait=True)
        if case.package() == "a mixture":
            return number
    raise AssertionError


@pytest.mark.parametrize("kind", ["once", "on"])
def test_failure_at_every_operation(case: Case, kind: str, monkeypatch):
    failures = 0
    wait = case.verb != "apply"  # before that the verbs do the same
    for number in itertools.count(1):
        case.reset()
        fault = Fault(kind, number, wait)
        error = None
        with injected(fault, monkeypatch):
            try:
                case.run()
            except PatchError as caught:
                error = caught
        if not fault.struck:
            break
        if error is None:  # it did not matter, or only for the cleaning up
            assert case.package() == "after", f"operation {number}"
        elif "kept beside the package" in str(error):  # the disk went away for good half-way
            assert kind == "on"
        else:
            failures += 1
            assert "Nothing was changed" in str(error)
            # patch-ng tries to go on after a single failure, and stumbles a little later
            assert kind == "once" or "No space left on device" in str(error)
            assert case.package() == "before", f"operation {number}"
        status(case.mini.install, case.series)
        assert snapshot(case.mini.dist) in (case.before, case.after), f"operation {number}"
        case.run()
        assert snapshot(case.mini.dist) == case.after
    assert failures > 10


def test_an_undo_goes_backwards(tmp_path: Path, monkeypatch) -> None:
    """A file became a folder before the change failed: the folder goes before the file is back."""
    root = tmp_path / "sglang"
    root.mkdir()
    (root / "z.py").write_text("old")
    (root / "extra").write_text("a file")
    changes = {"sglang/extra": None, "sglang/extra/state.json": b"{}", "sglang/z.py": b"new"}
    real, calls = os.replace, itertools.count(1)

    def failing(source, target):
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises((PatchError, OSError), match="No space left"):
        journal.commit(root, changes)
    assert (root / "extra").read_text() == "a file"
    assert (root / "z.py").read_text() == "old"
    assert journal.journals(root) == []
