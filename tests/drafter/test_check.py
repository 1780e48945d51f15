"""A drafter against its target: what does not fit is an error, what is doubtful a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sgl_entropy.drafter.check import CheckReport, algorithm_mismatch, check_drafter
from sgl_entropy.drafter.config import DrafterError
from sgl_entropy.target.config import TargetConfig, tokenizer_digest
from tests.drafter.tiny import (
    edsd_config,
    random_tensors,
    write_drafter,
    write_eagle3,
    write_edsd,
    write_target,
    write_tokenizer,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target")


def lines(report: CheckReport, level: str) -> list[str]:
    return [f"{f.name}: {f.line()}" for f in report.findings if f.level == level]


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("write", "flag"), [(write_edsd, "EDSD"), (write_eagle3, "EAGLE3")])
def test_a_fitting_pair_gets_its_launch_command(
    tmp_path: Path, target: Path, write: Any, flag: str
) -> None:
    drafter = write(tmp_path / "my drafter")
    report = check_drafter(drafter, target)
    assert report.ok
    assert lines(report, "warn") == []
    assert report.algorithm == flag
    assert report.launch_command == (
        f"python -m sglang.launch_server --model-path {target} --speculative-algorithm {flag} "
        f"--speculative-draft-model-path '{drafter}' --speculative-num-steps 4 "
        "--speculative-eagle-topk 1 --speculative-num-draft-tokens 5"
    )
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_sizes_of_another_target_are_errors_listed_together(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", hidden_size=32, vocab_size=80)
    report = check_drafter(write_edsd(tmp_path / "drafter"), target)
    errors = lines(report, "error")
    assert any("made for hidden size 16, the target has 32" in e for e in errors)
    assert any("made for vocabulary 64, the target has 80" in e for e in errors)
    assert report.launch_command is None


@pytest.mark.parametrize(
    ("layers", "ok"), [(6, True), (5, False), (4, False), (40, True)], ids=["6", "5", "4", "40"]
)
def test_the_last_layer_is_out_of_reach(tmp_path: Path, layers: int, ok: bool) -> None:
    # target_layer_ids (1, 4): SGLang captures the input of layer 5, so 6 layers are needed.
    target = write_target(tmp_path / "target", num_hidden_layers=layers)
    report = check_drafter(write_edsd(tmp_path / "drafter"), target)
    assert report.ok is ok
    if not ok:
        assert f"within reach are 0 to {layers - 2}" in lines(report, "error")[0]


def test_default_eagle3_layers_need_a_target_that_is_deep_enough(tmp_path: Path) -> None:
    drafter = write_eagle3(tmp_path / "drafter", target_layer_ids=None)
    deep = write_target(tmp_path / "deep", num_hidden_layers=8)
    assert check_drafter(drafter, deep).ok
    report = check_drafter(drafter, write_target(tmp_path / "flat", num_hidden_layers=4))
    assert "SGLang's default layers [1, 1, 0]" in lines(report, "error")[0]


def test_rope_and_window_are_warnings(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", max_position_embeddings=2048, rope_theta=500000.0)
    change_config(target, rope_scaling={"rope_type": "llama3", "factor": 8.0})
    report = check_drafter(write_edsd(tmp_path / "drafter"), target)
    assert report.ok
    warnings = "\n".join(lines(report, "warn"))
    assert "rope_theta 10000, the target has 500000" in warnings
    assert "rope_scaling None, the target has {'rope_type': 'llama3', 'factor': 8.0}" in warnings
    assert "window of 256 positions is shorter than the target's context of 2,048" in warnings
    assert "--context-length 256" in warnings


def test_old_and_new_spellings_of_rope_scaling_are_equal(tmp_path: Path, target: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    drafter = write_edsd(tmp_path / "drafter", rope_scaling=scaling)
    change_config(
        target,
        rope_theta=None,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
    )
    assert lines(check_drafter(drafter, target), "warn") == []


def test_the_tokenizer_is_compared_where_it_is_shipped(tmp_path: Path, target: Path) -> None:
    drafter = write_edsd(tmp_path / "drafter")
    assert any("ships none" in line for line in lines(check_drafter(drafter, target), "ok"))
    write_tokenizer(drafter, 64)
    assert any("same token ids" in line for line in lines(check_drafter(drafter, target), "ok"))
    write_tokenizer(drafter, 64, word="foreign")
    assert "maps tokens to other ids" in lines(check_drafter(drafter, target), "error")[0]
    (drafter / "tokenizer.json").write_text("{")
    assert "not valid JSON" in lines(check_drafter(drafter, target), "error")[0]
    (target / "tokenizer.json").unlink()
    write_tokenizer(drafter, 64)
    assert "has none to compare" in lines(check_drafter(drafter, target), "warn")[0]


def test_the_digest_is_of_the_vocabulary_and_not_of_the_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 64)
    first = tokenizer_digest(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    path.write_text(json.dumps(tokenizer | {"padding": {"strategy": "BatchLongest"}}, indent=4))
    assert tokenizer_digest(tmp_path) == first
    tokenizer["added_tokens"].append({"id": 64, "content": "<new>"})
    path.write_text(json.dumps(tokenizer))
    assert tokenizer_digest(tmp_path) != first
    unigram = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    path.write_text(json.dumps({"model": unigram}))
    wordlevel = {"type": "WordLevel", "vocab": {"a": 1, "<unk>": 0}}
    digest = tokenizer_digest(tmp_path)
    path.write_text(json.dumps({"model": wordlevel}))
    assert tokenizer_digest(tmp_path) == digest


def test_a_text_config_inside_a_multimodal_one_is_found(tmp_path: Path, target: Path) -> None:
    path = target / "config.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({"architectures": ["Mm"], "hidden_size": 7, "text_config": text}))
    assert TargetConfig.from_folder(target).hidden_size == 16
    assert check_drafter(write_edsd(tmp_path / "drafter"), target).ok


@pytest.mark.parametrize("value", [None, 0, -1, "16", True, 16.0, 1 << 40, [16]])
def test_absurd_target_sizes_are_named(target: Path, value: object) -> None:
    change_config(target, hidden_size=value)
    with pytest.raises(DrafterError, match="hidden_size must be a positive integer"):
        TargetConfig.from_folder(target)


def test_a_missing_target_is_said_beside_the_drafters_own_problems(tmp_path: Path) -> None:
    tensors = random_tensors(edsd_config())
    tensors["fc.weight"][0, 0] = float("nan")
    drafter = write_drafter(tmp_path / "drafter", edsd_config(), tensors=tensors)
    errors = lines(check_drafter(drafter, tmp_path / "absent"), "error")
    assert any("fc.weight: 1 NaN" in e for e in errors)
    assert any("a target is a local Hugging Face folder" in e for e in errors)


def test_broken_headers_still_get_the_comparison_with_the_target(
    tmp_path: Path, target: Path
) -> None:
    tensors = random_tensors(edsd_config())
    del tensors["edfuse.gate_proj.weight"]
    tensors["norm.weight"] = torch.ones(3)
    drafter = write_drafter(tmp_path / "drafter", edsd_config(), tensors=tensors)
    report = check_drafter(drafter, target)
    assert len(lines(report, "error")) == 2
    assert any(line.startswith("layers: ") for line in lines(report, "ok"))


@pytest.mark.parametrize(
    ("write", "asked", "flag"),
    [
        (write_edsd, "EAGLE", "EDSD"),
        (write_edsd, "eagle3", "EDSD"),
        (write_edsd, "STANDALONE", "EDSD"),
        (write_eagle3, "EDSD", "EAGLE3"),
        (write_eagle3, "EAGLE", "EAGLE3"),
    ],
)
def test_the_wrong_algorithm_is_refused_with_the_right_flag(
    tmp_path: Path, write: Any, asked: str, flag: str
) -> None:
    message = algorithm_mismatch(write(tmp_path), asked)
    assert message is not None
    assert message.endswith(f"start it with --speculative-algorithm {flag}")
    assert "\n" not in message


def test_the_right_algorithm_and_other_peoples_drafters_pass(tmp_path: Path) -> None:
    assert algorithm_mismatch(write_edsd(tmp_path / "a"), "edsd") is None
    assert algorithm_mismatch(write_eagle3(tmp_path / "b"), "EAGLE3") is None
    other = write_target(tmp_path / "c")
    assert algorithm_mismatch(other, "STANDALONE") is None
    assert algorithm_mismatch("some/hub-id", "EAGLE3") is None
    assert "is no EDSD drafter" in str(algorithm_mismatch(other, "EDSD"))
    with pytest.raises(DrafterError, match="no such folder"):
        algorithm_mismatch("some/hub-id", "EDSD")
