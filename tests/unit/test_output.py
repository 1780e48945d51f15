"""Where ``--json`` goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.cli.output import check_json, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    assert write_json({"a": 1}, path) is False
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_dash_takes_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_json({"a": 1}, "-") is True
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_nowhere_is_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert write_json({"a": 1}, None) is False
    assert capsys.readouterr().out == ""


def test_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        check_json(tmp_path / "none" / "a.json")
    for fine in (None, "-", tmp_path / "a.json"):
        check_json(fine)
