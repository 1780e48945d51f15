"""Where ``--json`` goes."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from sgl_entropy import cli
from sgl_entropy.base.disk import partial_of
from sgl_entropy.cli import doctor, select
from sgl_entropy.cli.output import check_file, check_folder, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    assert write_json({"a": 1}, path) is False
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_named_and_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    partial_of(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"the disk is full: {path} could not be written"):
        write_json({"a": 1}, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_dash_takes_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_json({"a": 1}, "-") is True
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_nowhere_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_json({"a": 1}, None) is False
    assert capsys.readouterr().out == ""


def test_where_nothing_can_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for where, why in (
        (tmp_path / "none" / "a.json", "no such folder"),
        (tmp_path, "that is a folder"),
        (taken / "a.json", "no such folder"),
        (Path("/proc/a.json"), "cannot be written"),
        (tmp_path / ("a" * 300), "cannot be written"),
    ):
        with pytest.raises(ValueError, match=f"--json .*: {why}"):
            check_file("--json", where)
    for fine in (None, "-", tmp_path / "a.json", taken, "/dev/null"):
        check_file("--json", fine)
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_text() == "a file"


def test_a_pipes_reader_does_not_see_its_end_before_the_report(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    check_file("--json", pipe)
    write_json({"a": 1}, pipe)
    reader.join(20)
    assert json.loads(read[0]) == {"a": 1}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    write_json({"a": 1}, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    for where, why in (
        (taken, "is a file"),
        (taken / "more", "is a file"),
        (Path("/proc/more"), "cannot be written"),
    ):
        with pytest.raises(ValueError, match=f"--out .*{why}"):
            check_folder("--out", where)
    for fine in (None, tmp_path, tmp_path / "deep" / "er"):
        check_folder("--out", fine)
    assert list(tmp_path.iterdir()) == [taken]


def test_no_verb_starts_when_its_report_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run", lambda args: pytest.fail("it began"))
    assert cli.main(["doctor", "--json", str(tmp_path)]) == 2
    assert "--json" in capsys.readouterr().err
    monkeypatch.setattr(select, "run", lambda args: pytest.fail("it began"))
    (tmp_path / "taken.png").mkdir()
    words = ["select", "target", "--texts", "texts", "--plot", str(tmp_path / "taken.png")]
    assert cli.main(words) == 2
    assert "that is a folder, name a file" in capsys.readouterr().err
