"""Flags of two drafters: what cannot work is refused with one message at start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.drafter.config import DrafterError
from sgl_entropy.runtime.v0_5_6 import flags
from sgl_entropy.runtime.v0_5_6.switch_args import ServedDrafters, served_switch
from sgl_entropy.verify.policies import DrafterSwitch
from tests.drafter import tiny
from tests.runtime.test_flags import arguments, break_missing, tree


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tiny.write_edsd(tmp_path / "first")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return tiny.write_edsd(tmp_path / "small", fuse_size=8)


def two(first: Path, second: Path | str, **changes: Any) -> Any:
    return arguments(first, **{"speculative_second_draft_model_path": str(second), **changes})


def test_what_is_switched_stands_in_the_arguments(first: Path, small: Path) -> None:
    args = two(first, small)
    flags.prepare(args)
    assert args.drafter_switch == {
        "down": 1.0, "up": 1.5, "small": str(small), "large": str(first),
    }  # fmt: skip
    turned = two(small, first, speculative_drafter_switch="0,0.25")
    flags.prepare(turned)
    assert turned.drafter_switch == {
        "down": 0.0, "up": 0.25, "small": str(small), "large": str(first),
    }  # fmt: skip


def test_of_two_of_one_size_the_first_is_the_small_one(first: Path, tmp_path: Path) -> None:
    twin = tiny.write_edsd(tmp_path / "twin", seed=1)
    args = two(first, twin)
    flags.prepare(args)
    assert args.drafter_switch["small"] == str(first)


def test_one_drafter_switches_nothing(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(first)
    flags.prepare(args)
    assert args.drafter_switch is None
    monkeypatch.setattr("sglang.srt.server_args.get_global_server_args", lambda: args)
    assert served_switch() is None


def test_every_process_reads_it_from_the_arguments(
    first: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = two(first, small)
    flags.prepare(args)
    monkeypatch.setattr("sglang.srt.server_args.get_global_server_args", lambda: args)
    assert served_switch() == ServedDrafters(DrafterSwitch(1.0, 1.5), str(small), str(first))


@pytest.mark.parametrize(
    "given", ["", "1.0", "1,2,3", "low,high", "2,1", "1,1", "-1,2", "0,inf", "nan,1", "1,nan"]
)
def test_thresholds_that_are_none(first: Path, small: Path, given: str) -> None:
    with pytest.raises(DrafterError, match="two numbers of nats with 0 <= DOWN < UP") as caught:
        flags.prepare(two(first, small, speculative_drafter_switch=given))
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"easd_calibration": "f.json", "speculative_verify_mode": "easd"}, "easd-calibration"),
        ({"enable_dp_attention": True}, "--enable-dp-attention"),
        ({"pp_size": 2}, "--pp-size 1, found 2"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode decode"),
    ],
)
def test_what_does_not_go_beside_it(
    first: Path, small: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DrafterError, match=re.escape(message)):
        flags.prepare(two(first, small, **changes))


@pytest.mark.parametrize("algorithm", [None, "EAGLE3", "NGRAM", "STANDALONE"])
def test_it_needs_edsd(tmp_path: Path, small: Path, algorithm: str | None) -> None:
    eagle = tiny.write_eagle3(tmp_path / "eagle")
    args = two(eagle, small, speculative_algorithm=algorithm, **tree(4, 1, 5))
    with pytest.raises(
        DrafterError, match=f"needs --speculative-algorithm EDSD, found {algorithm}"
    ):
        flags.prepare(args)


def test_thresholds_without_a_second_drafter(first: Path) -> None:
    with pytest.raises(DrafterError, match="needs --speculative-second-draft-model-path"):
        flags.prepare(arguments(first, speculative_drafter_switch="1,2"))


def test_a_second_that_is_not_there_or_is_the_first(first: Path, tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match=r"second-draft-model-path .*nowhere: no such folder"):
        flags.prepare(two(first, tmp_path / "nowhere"))
    (tmp_path / "link").symlink_to(first)
    for same in (first, tmp_path / "link"):
        with pytest.raises(DrafterError, match="is --speculative-draft-model-path already"):
            flags.prepare(two(first, same))


def test_a_second_of_another_kind_or_broken(first: Path, small: Path, tmp_path: Path) -> None:
    eagle = tiny.write_eagle3(tmp_path / "eagle")
    with pytest.raises(DrafterError, match=r"second-draft-model-path: .*EAGLE3"):
        flags.prepare(two(first, eagle))
    break_missing(small)
    with pytest.raises(DrafterError, match=r"norm\.weight"):
        flags.prepare(two(first, small))


@pytest.mark.parametrize(
    ("sizes", "changes", "words"),
    [
        ({"target_layer_ids": (1, 3)}, {}, ["target_layer_ids must be equal", "[1, 4]", "[1, 3]"]),
        ({"vocab_size": 60}, {}, ["other", "does not fit the-target", "60"]),
        ({"draft_vocab_size": 16}, tree(4, 20, 60), ["topk", "1..16"]),
        (
            {"draft_vocab_size": 16},
            {"speculative_verify_mode": "easd", "easd_top_n": 20},
            ["--easd-top-n", "second drafter's vocabulary of 16", "20"],
        ),
    ],
)
def test_a_second_that_does_not_fit(
    first: Path, tmp_path: Path, sizes: Any, changes: Any, words: list[str]
) -> None:
    other = tiny.write_edsd(tmp_path / "other", **sizes)
    with pytest.raises(DrafterError) as caught:
        flags.prepare(two(first, other, **changes))
    for word in words:
        assert word in str(caught.value)
