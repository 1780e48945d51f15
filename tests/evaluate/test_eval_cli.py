"""``drafter eval`` as a script meets it: its JSON, its table, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sgl_entropy_bench.http.client import Client
from sgl_entropy_bench.http.replies import MetaInfo

from sgl_entropy.cli import main
from sgl_entropy.evaluate import offline
from tests.engine import pair
from tests.traced_server import TracedServer, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, both drafters and two files of prompts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("eval")
    target = pair.write_target(folder / "target")
    pair.write_edsd(folder / "edsd", target)
    pair.write_eagle3(folder / "eagle3", target)
    rows = [{"turns": [text]} for text in ("Hello", "The quick brown fox", "0", "x" * 60)]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "lines.txt").write_text('{"a": 1}\nabc abc abc\n')
    return folder


def evaluate(folder: Path, drafter: str, *more: str) -> dict[str, Any]:
    out = folder / "out.json"
    files = [str(folder / "chat.jsonl"), str(folder / "lines.txt")]
    words = ["drafter", "eval", str(folder / drafter), "--target", str(folder / "target")]
    assert main([*words, "--texts", *files, "--json", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("drafter", ["edsd", "eagle3"])
def test_figures_add_up(folder: Path, drafter: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(folder, drafter, "--max-new-tokens", "40")
    groups = found["groups"]
    assert list(groups) == ["chat", "lines"]
    assert [group["prompts"] for group in groups.values()] == [4, 2]
    for name in ("tokens", "cycles"):
        assert found[name] == sum(group[name] for group in groups.values())
    assert found["acceptance_length"] == pytest.approx(found["tokens"] / found["cycles"], abs=1e-4)
    assert found["acceptance_length"] > 1.2, "a drafter that is never right shows nothing"
    low, high = found["interval"]
    assert low <= found["acceptance_length"] <= high
    assert len(found["by_position"]) == 4
    # Every cycle's first draft is a position, in the deciles and in the map.
    deciles = found["by_target_entropy_decile"]
    assert sum(row["positions"] for row in deciles) == found["cycles"]
    assert sum(map(sum, found["heat_map"]["positions"])) == found["cycles"]
    accepted = sum(map(sum, found["heat_map"]["accepted"])) / found["cycles"]
    assert accepted == pytest.approx(found["by_position"][0], abs=1e-4)
    assert deciles[0]["acceptance"] > deciles[-1]["acceptance"], "certain tokens are easier"
    table = capsys.readouterr().out
    assert f"{groups['chat']['acceptance_length']:.3f}" in table
    assert "mean of the groups" in table


@pytest.mark.gpu
def test_a_gpu_judges_as_the_cpu_does(folder: Path) -> None:
    """On a machine with CUDA: pytest -m gpu tests/drafter/test_eval_cli.py"""
    one, other = (evaluate(folder, "edsd", "--device", device) for device in ("cpu", "cuda"))
    for name in ("tokens", "cycles", "by_position", "groups"):
        assert one[name] == other[name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter, texts = str(folder / "edsd"), str(folder / "lines.txt")
    words = (drafter, "--target", str(folder / "target"), "--texts", texts, "--device", "cuda")
    assert "--device cuda: cannot compute there" in refused(capsys, *words)


def test_a_plot_is_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "figure.png"
    evaluate(folder, "edsd", "--max-new-tokens", "20", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    words = (str(folder / "edsd"), "--target", str(folder / "target"), "--texts", str(folder))
    for plot, message in (
        ("f.svg", "end the name in .png"),
        ("none/f.png", "no such folder"),
    ):
        assert message in refused(capsys, *words, "--plot", str(folder / plot))


def test_fewer_and_deeper(folder: Path) -> None:
    found = evaluate(folder, "edsd", "--max-prompts", "1", "--depth", "2", "--max-new-tokens", "9")
    assert found["prompts"] == 2
    assert len(found["by_position"]) == found["depth"] == 2
    assert (found["max_prompts"], found["max_new_tokens"]) == (1, 9)
    assert found["tokens"] <= 2 * 8


@pytest.mark.parametrize("judged", [0, 3])
def test_an_interrupt_keeps_what_was_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], judged: int
) -> None:
    """The figures are those of the judged prompts alone, and say so."""
    done = 0
    draft = offline.draft_answer

    def interrupted(*given: Any) -> Any:
        nonlocal done
        if done == judged:
            raise KeyboardInterrupt
        done += 1
        return draft(*given)

    monkeypatch.setattr(offline, "draft_answer", interrupted)
    out = folder / f"partial-{judged}.json"
    words = ["drafter", "eval", str(folder / "edsd"), "--target", str(folder / "target")]
    words += ["--texts", str(folder / "chat.jsonl"), str(folder / "lines.txt")]
    assert main([*words, "--max-new-tokens", "20", "--json", str(out)]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "interrupted"
    assert out.is_file() == (judged > 0)
    if judged:
        found = json.loads(out.read_text())
        assert found["partial"] == {"judged": 3, "of": 6}
        assert found["prompts"] == 3
        assert "partial: 3 of 6 prompts" in printed.out


def test_an_interrupt_keeps_what_the_server_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Server:
        asked = 0

        def get(self, path: str) -> dict[str, Any]:
            return {"speculative_draft_model_path": "edsd", "speculative_num_steps": 4}

        def generate(self, **given: Any) -> Any:
            self.asked += 1
            if self.asked > 2:
                raise KeyboardInterrupt
            meta: dict[str, Any] = {"completion_tokens": 9, "spec_cycles": 4, "spec_emitted": 8}
            meta |= {"spec_accepted_by_position": [3, 1, 0, 0]}
            return SimpleNamespace(meta=MetaInfo.of({"meta_info": meta}))

    monkeypatch.setattr(Client, "from_url", lambda url: Server())
    out = folder / "served.json"
    words = ["drafter", "eval", str(folder / "edsd"), "--target", str(folder / "target")]
    words += ["--texts", str(folder / "chat.jsonl"), "--server", "http://h:1", "--json", str(out)]
    assert main(words) == 130
    found = json.loads(out.read_text())
    assert found["partial"] == {"judged": 2, "of": 4}
    assert found["acceptance_length"] == 2.0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["drafter", "eval", *words]) == 2
    return capsys.readouterr().err


def test_bad_input_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drafter, target = str(folder / "edsd"), str(folder / "target")
    texts = str(folder / "lines.txt")
    base = (drafter, "--target", target, "--texts", texts)
    assert "--depth must be at least 1" in refused(capsys, *base, "--depth", "0")
    assert "every prompt is longer" in refused(capsys, *base, "--max-prompt-tokens", "3")
    assert "need 5" in refused(capsys, *base, "--max-new-tokens", "501")
    assert "no draft-verify cycle" in refused(capsys, *base, "--max-new-tokens", "1")
    missing = str(folder / "none.txt")
    assert "no such file" in refused(capsys, drafter, "--target", target, "--texts", missing)
    assert "http://HOST:PORT" in refused(capsys, *base, "--server", "localhost:3")
    assert "--server http://127.0.0.1:9" in refused(capsys, *base, "--server", "http://127.0.0.1:9")
    assert "--device abacus: cannot compute there" in refused(capsys, *base, "--device", "abacus")
    server = ("--server", "http://127.0.0.1:9")
    for given in ("--device=cpu", "--depth=4", "--dtype=bfloat16", "--threads=2"):
        message = f"{given.split('=')[0]} is for offline measurements: leave out --server"
        assert message in refused(capsys, *base, *server, given)
    twice = str(folder / "other" / "lines.txt")
    (folder / "other").mkdir()
    shutil.copy(texts, twice)
    assert "the same name" in refused(capsys, *base, twice)


def test_a_foreign_target_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, key, value, message in (
        ("narrow", "num_hidden_layers", 3, "taps layer 3"),
        ("untemplated", "", None, "no chat template"),
    ):
        target = tmp_path / name
        shutil.copytree(folder / "target", target)
        file = target / ("config.json" if key else "tokenizer_config.json")
        settings = json.loads(file.read_text())
        settings = settings | {key: value} if key else {**settings, "chat_template": None}
        file.write_text(json.dumps(settings))
        words = (str(folder / "edsd"), "--target", str(target))
        assert message in refused(capsys, *words, "--texts", str(folder / "lines.txt"))


def test_a_tokenizer_of_more_tokens_than_the_target_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, texts = tmp_path / "target", tmp_path / "texts.txt"
    shutil.copytree(folder / "target", target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["H"] = pair.VOCABULARY + 7
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts.write_text("Hello\n")
    rest = ["--target", str(target), "--texts", str(texts), "--max-new-tokens", "9"]
    drafter = str(folder / "edsd")
    for words in (
        ["drafter", "eval", drafter, *rest],
        [
            "drafter",
            "robustness",
            f"edsd={drafter}",
            *rest,
            "--systems",
            str(texts),
            "--records",
            str(tmp_path / "records.jsonl"),
        ],
        ["calibrate", "--drafter", drafter, *rest, "--out", str(tmp_path / "easd.json")],
    ):
        assert main(words) == 2
        assert f"goes up to token {pair.VOCABULARY + 7}, but" in capsys.readouterr().err


@pytest.fixture
def server(folder: Path) -> Iterator[TracedServer]:
    with running(folder) as server:
        yield server


COUNTS = ("acceptance_length", "interval", "by_position", "cycles", "tokens", "groups")


def test_a_server_that_records_traces_tells_what_the_plain_models_do(
    folder: Path, server: TracedServer
) -> None:
    plain = evaluate(folder, "edsd", "--max-new-tokens", "40")
    plot = folder / "served.png"
    more = ("--max-new-tokens", "40", "--plot", str(plot))
    found = evaluate(folder, "edsd", "--server", server.url, *more)
    assert {name: found[name] for name in COUNTS} == {name: plain[name] for name in COUNTS}
    assert found["heat_map"] == plain["heat_map"]
    ours, theirs = (one["by_target_entropy_decile"] for one in (plain, found))
    for row, other in zip(ours, theirs, strict=True):
        assert row["entropy"] == pytest.approx(other["entropy"], abs=2e-4)
        assert row["positions"] == other["positions"]
        assert row["acceptance"] == other["acceptance"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    params = [body["sampling_params"] for body in server.asked]
    assert all(one["custom_params"] == {"spec_trace": True, "easd": False} for one in params)
    # What it takes to repeat it.
    digest = hashlib.sha256((folder / "lines.txt").read_bytes()).hexdigest()
    for one in (plain, found):
        assert one["texts"]["lines"] == {"file": "lines.txt", "sha256": digest}
        assert (one["depth"], one["max_prompts"], one["max_prompt_tokens"]) == (4, 20, 2048)
        assert one["provenance"]["commit"]
    assert (plain["dtype"], "dtype" in found) == ("float32", False)
    assert set(plain["provenance"]["inputs"]) == {"target", "drafter"}
    assert found["server"]["model_path"] == str(folder / "target")
    assert "unverified" not in found


def test_a_server_without_traces_tells_counts_alone(
    folder: Path, server: TracedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.info["easd"] = None
    found = evaluate(folder, "edsd", "--server", server.url, "--max-new-tokens", "9")
    assert "by_target_entropy_decile" not in found
    assert "heat_map" not in found
    assert "custom_params" not in server.asked[0]["sampling_params"]
    assert "without entropies: " in capsys.readouterr().err
    asked = len(server.asked)
    words = [str(folder / "edsd"), "--target", str(folder / "target"), "--server", server.url]
    words += ["--texts", str(folder / "lines.txt"), "--plot", str(folder / "none.png")]
    message = refused(capsys, *words)
    assert "--plot needs the entropies: " in message
    assert "start it with --speculative-verify-mode easd" in message
    assert len(server.asked) == asked, "found out before any prompt was paid for"


def test_chains_that_were_not_verified_whole_are_noted(
    folder: Path, server: TracedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.info["easd"] = None
    server.meta = {"spec_drafted": 2}
    found = evaluate(folder, "edsd", "--server", server.url, "--max-new-tokens", "9")
    held = found["unverified"]
    assert (held["verified"], held["of"]) == (2 * 6, 4 * found["cycles"])
    assert "SGL_ENTROPY_CPU_CYCLE_ROWS=inf" in held["to_verify_all"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"verified 12 of the {held['of']} tokens of whole chains" in line
    assert "SGL_ENTROPY_CPU_CYCLE_ROWS=inf" in line


def test_a_copy_of_both_models_is_the_same_and_another_is_refused(
    folder: Path, server: TracedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("target", "edsd"):
        shutil.copytree(folder / name, tmp_path / f"{name}-copy")
    paths = ("model_path", "speculative_draft_model_path")
    server.info |= {
        key: str(tmp_path / f"{name}-copy")
        for key, name in zip(paths, ("target", "edsd"), strict=True)
    }
    more = ("--max-prompts", "1", "--max-new-tokens", "9", "--server", server.url)
    assert evaluate(folder, "edsd", *more)["cycles"] > 0
    for name in ("target", "edsd"):
        weights = load_file(tmp_path / f"{name}-copy" / "model.safetensors")
        moved = {key: v + 1 if v.is_floating_point() else v for key, v in weights.items()}
        save_file(moved, tmp_path / f"{name}-copy" / "model.safetensors")
    words = [str(folder / "edsd"), "--target", str(folder / "target"), *more]
    words += ["--texts", str(folder / "lines.txt")]
    assert "whose weights or config are others" in refused(capsys, *words)
    server.info["model_path"] = str(folder / "target")
    assert "its weights are others" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("info", "meta", "message"),
    [
        ({"model_type": "qwen2"}, {}, "its model_type is qwen2, the target's llama"),
        ({"speculative_draft_model_path": None}, {}, "it serves no drafter"),
        ({"speculative_draft_model_path": "org/other"}, {}, "not with"),
        ({"speculative_eagle_topk": 3}, {}, "drafts trees of 3 branches"),
        ({"speculative_second_draft_model_path": "small"}, {}, "drafts with two drafters"),
        ({"speculative_num_draft_tokens": None}, {}, "does not say how many tokens it drafts"),
        ({}, {"spec_cycles": None}, "does not count cycles: patch its SGLang"),
        ({}, {"spec_trace": None}, "returned no spec_trace"),
    ],
)
def test_servers_of_something_else_are_refused(
    folder: Path,
    server: TracedServer,
    capsys: pytest.CaptureFixture[str],
    info: dict[str, Any],
    meta: dict[str, Any],
    message: str,
) -> None:
    server.info |= info
    server.meta = meta
    words = [str(folder / "edsd"), "--target", str(folder / "target"), "--server", server.url]
    more = ["--texts", str(folder / "lines.txt"), "--max-new-tokens", "5"]
    assert message in refused(capsys, *words, *more)


def test_what_cannot_be_compared_is_said(
    folder: Path, server: TracedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.info |= {"model_path": "org/model", "speculative_draft_model_path": "org/edsd"}
    more = ("--max-prompts", "1", "--max-new-tokens", "9", "--server", server.url)
    assert evaluate(folder, "edsd", *more)["cycles"] > 0
    assert "serves org/model, which cannot be compared with" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["eval", "robustness", "check", "trim"])
def test_every_action_has_examples(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["drafter", action, "--help"])
    shown = capsys.readouterr().out
    assert f"examples:\n  sgl-entropy drafter {action} " in shown
