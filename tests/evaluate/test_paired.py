"""Two drafters on the same prompts: the ratio of their taus, and what is no comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.base.typed_json import as_json, from_json
from sgl_entropy.cli import main
from sgl_entropy.evaluate.paired import paired_ratio, read_earlier
from sgl_entropy.evaluate.report import DrafterReport, TauRatio
from sgl_entropy.evaluate.tau import PromptCounts
from tests.evaluate.test_eval_cli import evaluate, folder, refused

__all__ = ["folder"]

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results" / "training"


def counts(*prompts: tuple[str, int, int]) -> list[PromptCounts]:
    return [PromptCounts(*one) for one in prompts]


def test_the_ratio_is_of_means_of_groups_and_paired_by_prompt() -> None:
    theirs = counts(("a", 20, 10), ("a", 60, 20), ("b", 10, 10))
    ours = counts(("a", 30, 10), ("a", 90, 20), ("b", 15, 10))
    found = paired_ratio(ours, theirs)
    assert found == TauRatio(1.5, (1.5, 1.5), True)
    # Hard prompts are hard for both: their scatter does not widen the interval.
    same = paired_ratio(theirs, theirs)
    assert same == TauRatio(1.0, (1.0, 1.0), False)
    # Ahead on one prompt of a group and behind on the other.
    split = counts(("a", 30, 10), ("a", 30, 20)), counts(("a", 20, 10), ("a", 60, 20))
    assert paired_ratio(*split).interval == (0.5, 1.5)
    # (80 / 30 + 10 / 10) / 2 against (40 / 30 + 10 / 10) / 2
    uneven = paired_ratio(
        counts(("a", 80, 30), ("b", 10, 10)), counts(("a", 40, 30), ("b", 10, 10))
    )
    assert uneven.ratio == pytest.approx((8 / 3 + 1) / (4 / 3 + 1), abs=1e-4)
    # A group whose answers have no cycle: nothing was drafted, for either.
    none = counts(("a", 0, 0), ("b", 4, 2)), counts(("a", 0, 0), ("b", 4, 4))
    assert paired_ratio(*none).ratio == 1.5
    with pytest.raises(ValueError, match="judged on other prompts"):
        paired_ratio(ours, theirs[:2])


def test_the_command_compares_two_drafters(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(folder, "eagle3")
    path = tmp_path / "first.json"
    path.write_text(json.dumps(first))
    capsys.readouterr()
    second = evaluate(folder, "edsd", "--against", str(path))
    ratio = second["mean_of_groups"] / first["mean_of_groups"]
    assert second["against"]["ratio"] == pytest.approx(ratio, abs=2e-4)
    assert second["against"]["drafter"].endswith("eagle3")
    assert second["per_prompt"][0][0] == "chat"
    assert sum(tokens for _, tokens, _ in second["per_prompt"]) == second["tokens"]
    assert f"{folder / 'eagle3'}: {100 * (second['against']['ratio'] - 1):+.1f} %" in (
        capsys.readouterr().out
    )
    path.write_text(json.dumps(second))
    low, high = evaluate(folder, "edsd", "--against", str(path))["against"]["interval"]
    assert (low, high) == (1.0, 1.0)


def test_a_report_older_than_identities_is_known_by_its_targets_name(tmp_path: Path) -> None:
    raw = json.loads((RESULTS / "acceptance-edsd.json").read_text())
    path = tmp_path / "earlier.json"
    made = {"folder": "model", "identity": "a" * 64}

    def with_target(**target: str) -> Any:
        facts = {**raw["provenance"], "inputs": {"target": target} if target else {}}
        return {**raw, "target": "there/model", "provenance": facts}

    now = from_json(DrafterReport, {**with_target(**made), "target": "here/model"}).subject
    for same in ({"weights_sha256": "0123", "folder": "model"}, {**made, "folder": "renamed"}):
        path.write_text(json.dumps(with_target(**same)))
        assert read_earlier(path, now)
    for other in ({"weights_sha256": "0123", "folder": "other"}, {**made, "identity": "b"}, {}):
        path.write_text(json.dumps(with_target(**other)))
        with pytest.raises(ValueError, match="it has other target"):
            read_earlier(path, now)


def test_what_is_no_comparison_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "first.json"
    first = evaluate(folder, "eagle3", "--max-new-tokens", "8")
    words = [str(folder / "edsd"), "--target", str(folder / "target"), "--texts"]
    words += [str(folder / "chat.jsonl"), str(folder / "lines.txt"), "--against", str(path)]
    words += ["--json", str(tmp_path / "none.json")]
    assert "first.json: no such file" in refused(capsys, *words)
    path.write_text("{")
    assert f"--against {path}" in refused(capsys, *words)
    path.write_text("[]")
    assert "no report of `drafter eval --json`" in refused(capsys, *words)
    path.write_text(json.dumps(first))
    assert "it has other max_new_tokens" in refused(capsys, *words)
    words += ["--max-new-tokens", "8"]
    for key, value in (("depth", 3), ("texts", {}), ("max_prompts", 2)):
        path.write_text(json.dumps(first | {key: value}))
        assert f"it has other {key}" in refused(capsys, *words)
    path.write_text(json.dumps(first | {"partial": {"judged": 1, "of": 6}}))
    assert "it was interrupted" in refused(capsys, *words)
    assert not (tmp_path / "none.json").exists()
    path.write_text(json.dumps(first))
    assert main(["drafter", "eval", *words]) == 0


@pytest.mark.parametrize("drafter", ["edsd", "eagle3"])
def test_a_committed_report_is_read_and_written_as_it_is(drafter: str) -> None:
    path = RESULTS / f"acceptance-{drafter}.json"
    raw = json.loads(path.read_text())
    report = from_json(DrafterReport, raw)
    assert as_json(report) == raw
    assert len(report.acceptance.per_prompt) == report.acceptance.pooled.prompts == 100
