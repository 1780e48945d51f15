"""``sgl-entropy drafter``: tables for people, JSON and exit codes for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgl_entropy.cli import main
from tests.drafter.tiny import write_eagle3, write_edsd, write_target


def test_info_prints_sizes_and_both_layer_countings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = write_edsd(tmp_path / "drafter")
    assert main(["drafter", "info", str(drafter)]) == 0
    rows = dict(
        line.split(None, 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    assert rows["algorithm"] == "EDSD"
    assert rows["target_layer_ids"] == "1, 4"
    assert rows["hidden_state_numbers"] == "2, 5"
    assert rows["up_table_bytes"] == f"{32 * 24 * 4:,}"


def test_info_as_json_counts_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drafter", "info", str(write_eagle3(tmp_path / "d")), "--json", "-"]) == 0
    info = json.loads(capsys.readouterr().out)
    attention = 2 * 16 * (16 + 8 + 8) + 16 * 16
    assert info["parameters"] == 16 * 48 + attention + 3 * 16 * 32 + 4 * 16 + 32 * 16
    assert info["dtypes"] == {"F32": 15 - 2}


def test_check_prints_the_command_and_returns_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter, target = write_edsd(tmp_path / "d"), write_target(tmp_path / "t")
    assert main(["drafter", "check", str(drafter), "--target", str(target)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"python -m sglang.launch_server --model-path {target} ")
    assert "--speculative-algorithm EDSD" in last


@pytest.mark.parametrize("to_stdout", [True, False])
def test_check_as_json_returns_one_for_a_foreign_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to_stdout: bool
) -> None:
    drafter = write_edsd(tmp_path / "d")
    target = write_target(tmp_path / "t", vocab_size=80)
    file = "-" if to_stdout else str(tmp_path / "report.json")
    assert main(["drafter", "check", str(drafter), "--target", str(target), "--json", file]) == 1
    out = capsys.readouterr().out
    report = json.loads(out if to_stdout else Path(file).read_text())
    assert report["ok"] is False
    assert report["launch_command"] is None
    assert [f["name"] for f in report["findings"] if f["level"] == "error"] == ["vocabulary"]


def test_convert_names_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_eagle3(tmp_path / "a")
    command = ["drafter", "convert", str(source), str(tmp_path / "b"), "--to", "speculators"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "midlayer.hidden_norm.weight -> layers.0.hidden_norm.weight" in out
    assert "15 tensors from published to speculators" in out
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize("action", ["info", "check", "convert"])
@pytest.mark.parametrize("kind", ["absent", "pickle", "truncated", "bad-config"])
def test_bad_input_is_one_message_and_a_non_zero_exit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, kind: str
) -> None:
    drafter = tmp_path / "drafter"
    target = write_target(tmp_path / "t")
    if kind != "absent":
        weights = write_edsd(drafter) / "model.safetensors"
        if kind == "pickle":
            weights.rename(drafter / "pytorch_model.bin")
        elif kind == "truncated":
            weights.write_bytes(weights.read_bytes()[:-5])
        else:
            (drafter / "config.json").write_text("[]")
    rest = {"info": [], "check": ["--target", str(target)], "convert": [str(tmp_path / "b")]}
    assert main(["drafter", action, str(drafter), *rest[action]]) in (1, 2)
    captured = capsys.readouterr()
    expected = {
        "absent": "no such folder",
        "pickle": "pytorch_model.bin",
        "truncated": "truncated",
        "bad-config": "expected a JSON object",
    }
    assert (captured.out + captured.err).count(expected[kind]) == 1
    assert captured.err
    assert not (tmp_path / "b").exists()
