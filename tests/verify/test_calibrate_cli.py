"""``calibrate`` as a script meets it: offline, from a server's traces, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.cli import calibrate_sources, main
from sgl_entropy.evaluate.easd_decode import decode
from sgl_entropy.verify.calibration import Calibration
from tests.engine import pair
from tests.traced_server import TracedServer, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a drafter and texts, as a file each of rows and of lines."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("calibrate")
    pair.write_edsd(folder / "edsd", pair.write_target(folder / "target"))
    rows = [{"turns": [text]} for text in ("Hello", "The quick brown fox", "0", "x" * 60)]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "lines.txt").write_text("abc abc abc\nwhy?\n")
    return folder


def models(folder: Path) -> list[str]:
    return ["--target", str(folder / "target"), "--drafter", str(folder / "edsd")]


def texts(folder: Path) -> list[str]:
    return ["--texts", str(folder / "chat.jsonl"), str(folder / "lines.txt")]


def calibrate(folder: Path, *words: str, out: str = "out.json") -> dict[str, Any]:
    path = folder / out
    assert main(["calibrate", *words, "--out", str(path), "--max-new-tokens", "40"]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    """What the plain models say, once for the tests that compare with it."""
    return calibrate(folder, *models(folder), *texts(folder), out="plain.json")


def test_offline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrate(folder, *models(folder), *texts(folder), "--json", str(folder / "same.json"))
    assert (folder / "same.json").read_bytes() == (folder / "out.json").read_bytes()
    made = Calibration.load(folder / "out.json")
    made.check(folder / "target", folder / "edsd")
    with pytest.raises(ValueError, match="its target is target"):
        made.check(folder / "edsd", folder / "edsd")
    assert found["texts"]["files"] == ["chat.jsonl", "lines.txt"]
    assert found["texts"]["prompts"] == 6
    assert found["positions"] > 100
    rates = [row["share"] for row in found["by_percentile"]]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < found["rates"]["share"] == rates[3] < 0.2
    assert found["rates"]["acceptance_fired"] < found["rates"]["acceptance_not_fired"]
    assert found["rates"]["acceptance_length_easd"] < found["rates"]["acceptance_length"]
    out, err = capsys.readouterr()
    assert f"{found['rule']['target_entropy']:.3f}" in out
    assert "6 of 6 prompts (about 0:00 left)" in err
    assert "warning: only" in err


@pytest.mark.gpu
def test_a_gpu_calibrates_as_the_cpu_does(folder: Path) -> None:
    """On a machine with CUDA: pytest -m gpu tests/verify/test_calibrate_cli.py"""
    words = [*models(folder), *texts(folder)]
    here, there = (calibrate(folder, *words, "--device", name) for name in ("cpu", "cuda"))
    assert there["positions"] == here["positions"]
    for name in ("target_entropy", "draft_entropy"):
        assert there["rule"][name] == pytest.approx(here["rule"][name], rel=1e-3)


def test_a_device_that_cannot_be_used_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(folder / "device.json")]
    server = ["--server", "http://127.0.0.1:9"]
    for given in ("--device=cpu", "--depth=3", "--dtype=float32", "--threads=1"):
        assert main(["calibrate", *texts(folder), *out, *server, given]) == 2
        name = given.split("=")[0]
        assert f"{name} is for offline measurements: leave out --server" in capsys.readouterr().err
    assert main(["calibrate", *models(folder), *texts(folder), *out, "--device", "mars"]) == 2
    assert "--device mars: cannot compute there" in capsys.readouterr().err
    assert not (folder / "device.json").exists()


def interrupted_at(prompt: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An interrupt comes at the n-th prompt that is decoded; returns all that is asked for."""
    asked: list[Any] = []

    def stopped(*given: Any) -> Any:
        asked.append(given)
        if len(asked) == prompt:
            raise KeyboardInterrupt
        return decode(*given)

    monkeypatch.setattr(calibrate_sources, "decode", stopped)
    return asked


def test_an_interrupted_calibration_goes_on(
    folder: Path,
    plain: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*models(folder), *texts(folder)]
    asked = interrupted_at(4, monkeypatch)
    out = folder / "again.json"
    command = ["calibrate", *words, "--out", str(out), "--max-new-tokens", "40"]
    assert main(command) == 130
    assert not out.exists()
    record = folder / "again.json.trace"
    record.write_bytes(record.read_bytes() + b'{"rid": "torn')
    assert main(command) == 0
    assert "3 prompts are there from before" in capsys.readouterr().err
    # Three were done, one was under way: the other two and that one are asked now.
    assert len(asked) == 7
    assert json.loads(out.read_text()) == plain
    assert not record.exists()


def test_a_record_of_other_settings_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted_at(2, monkeypatch)
    command = ["calibrate", *models(folder), *texts(folder), "--out", str(folder / "odd.json")]
    assert main(command) == 130
    assert main([*command, "--top-n", "3"]) == 2
    assert "top_n differ" in capsys.readouterr().err


def test_prompts_of_another_dtype_are_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models are the same, their entropies are not."""
    asked = interrupted_at(3, monkeypatch)
    out = ["--out", str(folder / "mix.json"), "--max-new-tokens", "40"]
    command = ["calibrate", *models(folder), *texts(folder), *out]
    assert main(command) == 130
    assert main([*command, "--dtype", "bfloat16"]) == 0
    assert len(asked) == 3 + 6, "all six again"
    found = json.loads((folder / "mix.json").read_text())
    assert found == calibrate(folder, *models(folder), *texts(folder), "--dtype", "bfloat16")


def test_other_percentiles_and_conditions(folder: Path, plain: dict[str, Any]) -> None:
    words = [*models(folder), *texts(folder)]
    more = ["--target-percentile", "60", "--draft-percentile", "90", "--top-n", "4"]
    found = calibrate(folder, *words, *more, "--overlap", "0.75", out="other.json")
    rows = {row["percentile"]: row for row in plain["by_percentile"]}
    assert found["rule"]["target_entropy"] == rows[60]["target_entropy"]
    assert found["rule"]["draft_entropy"] == rows[90]["draft_entropy"]
    assert (found["rule"]["top_n"], found["rule"]["overlap"]) == (4, 0.75)
    assert found["texts"] == plain["texts"]
    fewer = calibrate(folder, *words, "--max-prompts", "1", out="fewer.json")
    assert fewer["texts"]["sha256"] != plain["texts"]["sha256"]


def test_plots_are_pictures(folder: Path) -> None:
    for name, begins in (("f.png", b"\x89PNG"), ("f.svg", b"<?xml"), ("g.svg", b"<?xml")):
        few = ("--max-prompts", "1", "--plot", str(folder / name))
        calibrate(folder, *models(folder), *texts(folder), *few)
        assert (folder / name).read_bytes().startswith(begins)
        assert (folder / name).stat().st_size > 10_000
    assert (folder / "f.svg").read_bytes() == (folder / "g.svg").read_bytes()


@pytest.fixture
def server(folder: Path) -> Iterator[TracedServer]:
    with running(folder) as server:
        yield server


def test_a_servers_traces_give_the_same(
    folder: Path, plain: dict[str, Any], server: TracedServer
) -> None:
    found = calibrate(folder, "--server", server.url, *texts(folder), out="server.json")
    settings = {"source": "server", "dtype": None}
    assert found == {**plain, "settings": {**plain["settings"], **settings}}
    params = [body["sampling_params"] for body in server.asked]
    assert len(params) == 6
    assert all(one["custom_params"] == {"spec_trace": True, "easd": False} for one in params)
    assert all(one["temperature"] == 0 for one in params)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    out = folder / "never.json"
    assert main(["calibrate", "--out", str(out), *words]) == 2
    assert not out.exists()
    # What was measured before the failure stays for the next try, of which there is none here.
    out.with_name("never.json.trace").unlink(missing_ok=True)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("info", "meta", "message"),
    [
        ({"easd": None}, {}, "records no traces: start it with --speculative-verify-mode easd"),
        ({"easd": {"top_n": 10, "normalised": True}}, {}, "without --easd-normalised"),
        ({"easd_relaxed_below": 0.5}, {}, "without --easd-relaxed-below"),
        ({"draft_stop": {"name": "svip"}}, {}, "without --speculative-draft-stop"),
        ({"easd": {"top_n": 7}}, {}, "no share of 7: another top_n"),
        ({"model_path": "org/model"}, {}, "serves org/model"),
        ({}, {"spec_trace": None}, "returned no spec_trace"),
        ({}, {"spec_trace": [{}]}, "spec_trace, cycle 1: missing key"),
        ({"speculative_num_draft_tokens": 3}, {}, "must be"),
        ({}, {"spec_trace": []}, "answers are too short"),
    ],
)
def test_servers_that_cannot_be_asked(
    folder: Path,
    server: TracedServer,
    capsys: pytest.CaptureFixture[str],
    info: dict[str, Any],
    meta: dict[str, Any],
    message: str,
) -> None:
    server.info |= info
    server.meta = meta
    words = ("--server", server.url, *texts(folder), "--max-new-tokens", "5")
    assert message in refused(capsys, folder, *words)


def test_a_trace_with_nan_and_another_top_n(
    folder: Path, server: TracedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"draft_entropy": [float("nan")] * 4, "draft_prob": [0.5] * 4, "overlap": [0.5] * 4}
    row |= {"target_prob": [0.5] * 4, "target_entropy": [1.0] * 5}
    counts = {"verified": 4, "accepted": 0, "emitted": 1, "checked": 0, "fired": None}
    server.meta = {"spec_trace": [row | counts]}
    words = ("--server", server.url, *texts(folder))
    error = refused(capsys, folder, *words)
    assert "prompt 1" in error
    assert "draft_entropy[0] must be a number from 0, found nan" in error
    assert "the server compares 10" in refused(capsys, folder, *words, "--top-n", "5")


def test_bad_input_is_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (*models(folder), *texts(folder))
    for value in ("-1", "101", "nan"):
        assert "--percentile must be a number" in refused(
            capsys, folder, *base, f"--percentile={value}"
        )
    assert "--draft-percentile must" in refused(capsys, folder, *base, "--draft-percentile", "200")
    assert "overlap must be a share" in refused(capsys, folder, *base, "--overlap", "1.5")
    assert "top_n must be a whole" in refused(capsys, folder, *base, "--top-n", "0")
    assert "the drafter knows" in refused(capsys, folder, *base, "--top-n", "900")
    assert "--depth must be at least 1" in refused(capsys, folder, *base, "--depth", "0")
    assert "answers are too short" in refused(capsys, folder, *base, "--max-new-tokens", "1")
    assert "have to fit into" in refused(capsys, folder, *base, "--max-new-tokens", "900")
    assert "--plot f.gif: a PNG or SVG is written" in refused(
        capsys, folder, *base, "--plot", "f.gif"
    )
    assert "--out" in refused(capsys, folder, *base, "--out", str(tmp_path / "none" / "c.json"))
    assert "expected --target and --drafter, or --server" in refused(
        capsys, folder, "--target", str(folder / "target"), *texts(folder)
    )
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    words = (*models(folder), "--texts", str(empty))
    assert "holds no text" in refused(capsys, folder, *words)
    down = ("--server", "http://127.0.0.1:9", *texts(folder))
    assert "--server http://127.0.0.1:9: " in refused(capsys, folder, *down)
    assert "http://HOST:PORT" in refused(capsys, folder, "--server", "here", *texts(folder))
