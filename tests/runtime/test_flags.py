"""Launch flags: what cannot work is refused with one message before anything is allocated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgl_entropy.drafter.config import DrafterError
from sgl_entropy.runtime.v0_5_6 import flags, modes
from sgl_entropy.verify.policies import Svip
from sgl_entropy.verify.replay.stop import stop_of
from tests.drafter import tiny

ROOT = Path(__file__).resolve().parents[2]


def arguments(drafter: Path | None, algorithm: str = "EDSD", **changes: Any) -> Any:
    """The fields of ``ServerArgs`` that ``prepare`` reads, for the tiny target."""
    target = SimpleNamespace(
        vocab_size=64, hidden_size=16, num_hidden_layers=6, max_position_embeddings=256
    )
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
        if name in changes:
            setattr(target, name, changes.pop(name))
    fields = {
        "model_path": "the-target",
        "device": "cpu",
        "page_size": 1,
        "grammar_backend": None,
        "context_length": None,
        "speculative_algorithm": algorithm,
        "speculative_draft_model_path": None if drafter is None else str(drafter),
        "speculative_draft_model_revision": None,
        "speculative_num_steps": None,
        "speculative_eagle_topk": None,
        "speculative_num_draft_tokens": None,
        "speculative_accept_threshold_single": 1.0,
        "speculative_accept_threshold_acc": 1.0,
        "get_hf_config": lambda: target,
        **vars(modes.EntropyArgs()),
    }
    return SimpleNamespace(**(fields | changes))


def shape(args: Any) -> tuple[int, int, int]:
    return (
        args.speculative_num_steps,
        args.speculative_eagle_topk,
        args.speculative_num_draft_tokens,
    )


def tree(steps: int | None, topk: int | None, tokens: int | None) -> dict[str, int | None]:
    return {
        "speculative_num_steps": steps,
        "speculative_eagle_topk": topk,
        "speculative_num_draft_tokens": tokens,
    }


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ((None, None, None), (4, 1, 5)),
        ((3, None, None), (3, 1, 4)),
        ((3, 1, 4), (3, 1, 4)),
        ((4, 3, 12), (4, 3, 12)),
        ((2, 3, 13), (2, 3, 13)),
    ],
)
def test_shapes_that_exist(tmp_path: Path, given: Any, filled: Any) -> None:
    args = arguments(tiny.write_edsd(tmp_path / "d"), **tree(*given))
    flags.prepare(args)
    assert shape(args) == filled


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ((0, 1, 1), "num-steps"),
        ((-1, 1, 2), "num-steps"),
        ((4, 0, 5), "topk"),
        ((4, 33, 60), "1..32"),
        ((4, 1, 9), "num-draft-tokens 5"),
        ((2, 3, 14), "2..13"),
        ((4, 3, 1), "num-draft-tokens"),
        ((None, 3, None), "num-steps"),
        ((None, None, 8), "num-steps"),
    ],
)
def test_shapes_that_cannot_exist(tmp_path: Path, given: Any, word: str) -> None:
    args = arguments(tiny.write_edsd(tmp_path / "d"), **tree(*given))
    with pytest.raises(DrafterError, match=word.replace(".", r"\.")):
        flags.prepare(args)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"page_size": 16}, ["--page-size 1"]),
        ({"speculative_accept_threshold_single": 0.5}, ["threshold"]),
        ({"vocab_size": 65}, ["64", "65", "vocabulary"]),
        ({"hidden_size": 32}, ["width", "32"]),
        ({"num_hidden_layers": 5}, ["target_layer_ids", "0..3"]),
    ],
)
def test_a_drafter_that_does_not_fit(tmp_path: Path, changes: Any, words: list[str]) -> None:
    args = arguments(tiny.write_edsd(tmp_path / "d"), **changes)
    with pytest.raises(DrafterError) as caught:
        flags.prepare(args)
    for word in words:
        assert word in str(caught.value)


def test_a_cost_of_a_cycle_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_ENTROPY_CPU_CYCLE_ROWS", "lots")
    with pytest.raises(DrafterError, match="SGL_ENTROPY_CPU_CYCLE_ROWS=lots"):
        flags.prepare(arguments(tiny.write_edsd(tmp_path / "d")))


@pytest.mark.parametrize("algorithm", ["EAGLE", "EAGLE3"])
def test_an_edsd_checkpoint_under_another_algorithm(tmp_path: Path, algorithm: str) -> None:
    args = arguments(tiny.write_edsd(tmp_path / "d"), algorithm, **tree(4, 1, 5))
    with pytest.raises(DrafterError, match="EDSD"):
        flags.prepare(args)


@pytest.mark.parametrize("backend", ["llguidance", "outlines"])
def test_a_grammar_backend_that_cannot_go_back(tmp_path: Path, backend: str) -> None:
    drafter = tiny.write_edsd(tmp_path / "d")
    for fine in (None, "xgrammar", "none"):
        flags.prepare(arguments(drafter, grammar_backend=fine))
    with pytest.raises(DrafterError, match=f"--grammar-backend {backend} cannot take back"):
        flags.prepare(arguments(drafter, grammar_backend=backend))


def test_an_eagle3_checkpoint_under_edsd(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="EAGLE3"):
        flags.prepare(arguments(tiny.write_eagle3(tmp_path / "d")))


def test_no_drafter_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="--speculative-draft-model-path"):
        flags.prepare(arguments(None))
    with pytest.raises(DrafterError, match="nowhere"):
        flags.prepare(arguments(tmp_path / "nowhere"))


def break_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")


def break_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def break_pickle(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


BROKEN = {"nan": break_nan, "norm.weight": break_missing, "safetensors": break_pickle}


@pytest.mark.parametrize("word", BROKEN)
def test_a_broken_checkpoint(tmp_path: Path, word: str) -> None:
    folder = tiny.write_edsd(tmp_path / "d")
    BROKEN[word](folder)
    with pytest.raises(DrafterError) as caught:
        flags.prepare(arguments(folder))
    assert word in str(caught.value).lower()


def test_a_short_window_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags.prepare(arguments(tiny.write_edsd(tmp_path / "d"), context_length=4096))
    assert "256" in caplog.text
    assert "4096" in caplog.text


def test_other_algorithms_are_left_alone() -> None:
    for algorithm in (None, "NGRAM", "STANDALONE"):
        args = arguments(None, algorithm)
        before = dict(vars(args))
        flags.prepare(args)
        assert vars(args) == before


@pytest.mark.engine
@pytest.mark.parametrize("case", ["foreign_vocabulary", "steps_0", "pickle"])
def test_the_launch_command_ends_with_one_message(tmp_path: Path, case: str) -> None:
    target = tiny.write_target(tmp_path / "target")
    drafter = tiny.write_edsd(
        tmp_path / "drafter", **({"vocab_size": 60} if case == "foreign_vocabulary" else {})
    )
    if case == "pickle":
        break_pickle(drafter)
    steps = ["--speculative-num-steps", "0"] if case == "steps_0" else []
    environment = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(target)),
            *("--device", "cpu", "--attention-backend", "torch_native", "--port", "29990"),
            *("--speculative-algorithm", "EDSD", "--speculative-draft-model-path", str(drafter)),
            *steps,
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
    )
    assert done.returncode not in (0, None)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sgl-entropy: ")]
    assert len(lines) == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert json.loads((drafter / "config.json").read_text())["hidden_size"] == 16


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    return tiny.write_edsd(tmp_path / "d")


def easd(drafter: Path, **changes: Any) -> Any:
    return arguments(drafter, **{"speculative_verify_mode": "easd", **changes})


def test_easd_thresholds_in_force_stand_in_the_arguments(drafter: Path) -> None:
    """Where `/get_server_info` and every process find them."""
    args = easd(drafter, easd_target_entropy=1.25, easd_accepted_only=True)
    flags.prepare(args)
    assert args.easd == {
        "target_entropy": 1.25,
        "draft_entropy": 2.0,
        "top_n": 10,
        "overlap": 0.5,
        "normalised": False,
        "residual": False,
        "accepted_only": True,
    }
    plain = arguments(drafter)
    flags.prepare(plain)
    assert plain.easd is None


def test_easd_says_that_it_is_not_lossless(drafter: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags.prepare(easd(drafter, easd_draft_entropy=1.5, easd_relaxed_below=0.25))
    line = caplog.messages[-1]
    for part in ("not lossless", "above 2 (target) and 1.5 (draft) nats", "below 0.25 nats"):
        assert part in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"easd_target_entropy": -0.1}, "target_entropy must be a number from 0, found -0.1"),
        ({"easd_draft_entropy": float("nan")}, "draft_entropy must be a number from 0"),
        ({"easd_target_entropy": float("inf")}, "target_entropy must be a number from 0"),
        ({"easd_overlap": 1.01}, "overlap must be a share from 0 to 1, found 1.01"),
        ({"easd_top_n": 0}, "top_n must be a whole number from 1 to 1000, found 0"),
        ({"easd_top_n": 65}, "at most the draft vocabulary of"),
        ({"easd_normalised": True}, "is a share with normalised"),
        ({"easd_relaxed_below": -1.0}, "--easd-relaxed-below must be a number from 0"),
        ({"easd_calibration": "nowhere.json"}, "nowhere.json"),
        ({"speculative_verify_mode": "strict"}, "must be one of standard, easd, found 'strict'"),
        (
            {"speculative_verify_mode": "standard", "easd_overlap": 0.5, "easd_residual": True},
            "--easd-overlap, --easd-residual needs --speculative-verify-mode easd",
        ),
    ],
)
def test_what_easd_cannot_serve_is_refused(
    drafter: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DrafterError, match=re.escape(message)):
        flags.prepare(easd(drafter, **changes))


@pytest.mark.parametrize("algorithm", [None, "NGRAM", "NEXTN", "STANDALONE"])
def test_easd_needs_a_drafter_that_it_knows(drafter: Path, algorithm: str | None) -> None:
    args = easd(drafter, speculative_algorithm=algorithm)
    with pytest.raises(DrafterError, match="EDSD or EAGLE3"):
        flags.prepare(args)


def test_easd_refuses_the_overlapped_worker(drafter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENABLE_SPEC_V2", "1")
    with pytest.raises(DrafterError, match="SGLANG_ENABLE_SPEC_V2"):
        flags.prepare(easd(drafter))


def test_a_draft_stop_stands_in_the_arguments_as_traces_name_it(drafter: Path) -> None:
    args = arguments(drafter, speculative_draft_stop="svip")
    flags.prepare(args)
    assert args.draft_stop == {"name": "svip", "factor": 0.15, "limit": 0.3}
    assert stop_of(args.draft_stop) == Svip()
    assert args.easd is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_draft_stop": "never"}, "must be one of off, svip, calibrated"),
        ({"speculative_draft_stop": "calibrated"}, "needs --easd-calibration FILE"),
        ({"speculative_draft_stop": "svip", "speculative_draft_stop_cost": 0.1}, "calibrated"),
        ({"speculative_draft_stop": "svip", **tree(4, 3, 12)}, "--speculative-eagle-topk 1"),
        ({"easd_calibration": "file.json"}, "--easd-calibration needs"),
    ],
)
def test_a_draft_stop_that_cannot_be_is_refused(
    drafter: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DrafterError, match=re.escape(message)):
        flags.prepare(arguments(drafter, **changes))


def test_easd_refuses_a_reduced_head_without_its_map(tmp_path: Path) -> None:
    """Without d2t, draft ids would be compared with other tokens of the target."""
    folder = tiny.write_eagle3(tmp_path / "d")
    tensors = load_file(folder / "model.safetensors")
    del tensors["d2t"]
    save_file(tensors, folder / "model.safetensors")
    args = easd(folder, speculative_algorithm="EAGLE3")
    with pytest.raises(DrafterError, match="d2t"):
        flags.prepare(args)
