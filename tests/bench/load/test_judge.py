"""`bench judge`: a verdict of rules that were wrong is mended from the records alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sgl_entropy_bench.load.judge import rejudge, verdict

from sgl_entropy.cli import main as command
from tests.bench.load.test_report import (
    changed,
    clients,
    failing,
    nearly,
    write_folder,
)

OLD = "1 of 60 prompts were found in the server's prefix cache"


def test_a_reason_that_the_rules_no_longer_give_goes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run")
    before = json.loads((folder / "result.json").read_text())

    def spoil(report: dict[str, object]) -> None:
        results = report["results"]
        assert isinstance(results, list)
        results[0] |= {"valid": False, "reasons": [OLD], "notes": ["the cache was not emptied"]}
        report["valid"] = False

    changed(folder, spoil)
    assert command(["bench", "judge", str(folder)]) == 0
    after = json.loads((folder / "result.json").read_text())
    assert after["valid"]
    assert after["results"][0]["reasons"] == []
    assert "the cache was not emptied" in after["results"][0]["notes"]
    assert after["judged"]["commit"]
    assert after["results"][1:] == before["results"][1:]
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("name", ["latency", "throughput"])
def test_the_committed_results_open_and_keep_their_verdicts(tmp_path: Path, name: str) -> None:
    committed = Path(__file__).resolve().parents[3] / "bench/results/load" / name
    copy = shutil.copytree(committed, tmp_path / name)
    before = json.loads((copy / "result.json").read_text())
    after = rejudge.judge_folder(copy).to_json()
    for old, new in zip(before["results"], after["results"], strict=True):
        # Those of the run itself, which this version may only add to.
        assert {key: new.get(key) for key in old} == nearly(old)
    assert before["valid"] is after["valid"] is True


def test_a_reason_that_holds_stays(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", change=failing)
    assert command(["bench", "judge", str(folder)]) == 3
    report = json.loads((folder / "result.json").read_text())
    assert any("requests failed" in "".join(r["reasons"]) for r in report["results"])


@pytest.mark.parametrize("good", [True, False])
def test_loads_rest_on_a_capacity_that_is_judged_as_well(tmp_path: Path, good: bool) -> None:
    folder = write_folder(tmp_path / "run")
    records = folder / "none-capacity.jsonl"

    def probed(report: dict[str, object]) -> None:
        results = report["results"]
        assert isinstance(results, list)
        plain = next(r for r in results if r["arm"] == "none")
        held = (folder / f"none-{plain['load']}.jsonl").read_text()
        records.write_text(held if good else held.replace('"status"', '"error":"cut","status"'))
        if not good:
            lines = [json.loads(line) for line in held.splitlines()]
            records.write_text("".join(json.dumps({**x, "error": "cut"}) + "\n" for x in lines))
        report["probes"] = [{**plain, "load": "capacity", "valid": not good, "reasons": [OLD]}]
        rate = {"value": 2.0, "low": 1.0, "high": 3.0, "batches": 12, "reliable": True}
        report["capacity"] = {"concurrency": 2, "qps": rate, "valid": not good}
        for result in results:
            result |= {"valid": not good, "reasons": [verdict.NO_CAPACITY] if good else []}

    changed(folder, probed)
    report = rejudge.judge_folder(folder)
    assert report.valid is good
    assert all((verdict.NO_CAPACITY in r.verdict.reasons) is not good for r in report.results)


def test_a_merged_run_is_judged_by_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "all"
    parts = clients(tmp_path)
    assert command(["bench", "merge", *map(str, parts), "--out", str(out)]) in (0, 3)
    with pytest.raises(ValueError, match="merged run: judge its parts"):
        rejudge.judge_folder(out)
