"""A server of another model is found out before the answers are paid for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.cli import main
from sgl_entropy.train.answers.file import read_answers
from sgl_entropy.train.answers.same_target import refuse_other_server
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import data
from sgl_entropy.train.workspace import Workspace
from tests.scripted_server import Reply, ScriptedServer
from tests.train.test_fingerprint import copied, other_weights

URL = "http://127.0.0.1:30000"


def said(info: dict[str, Any], target: Path) -> list[str]:
    lines: list[str] = []
    refuse_other_server(info, target, URL, lines.append)
    return lines


def test_the_target_itself_is_served(tiny_folder: Path, tmp_path: Path) -> None:
    own = {"model_path": str(tiny_folder), "tokenizer_path": str(tiny_folder)}
    own |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}  # type: ignore[dict-item]
    assert said(own, tiny_folder) == []
    moved = copied(tiny_folder, tmp_path / "moved")
    assert said({"model_path": str(moved)}, tiny_folder) == []


def test_other_weights_are_refused_whatever_their_name(tiny_folder: Path, tmp_path: Path) -> None:
    other = other_weights(copied(tiny_folder, tmp_path / tiny_folder.name))
    with pytest.raises(ValueError, match=rf"{URL} does not serve .* serves {other}, whose weights"):
        said({"model_path": str(other)}, tiny_folder)


def test_another_architecture_is_refused_from_afar(tiny_folder: Path) -> None:
    info = {"model_path": "hub/name", "model_type": "qwen2"}
    with pytest.raises(ValueError, match="its model_type is qwen2, the target's llama"):
        said(info, tiny_folder)


def test_another_tokenizer_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    own = copied(tiny_folder, tmp_path / "own")
    for name, folder in (("a", own), ("b", tmp_path / "other")):
        folder.mkdir(exist_ok=True)
        vocabulary = {"model": {"type": "BPE", "vocab": {name: 0}}}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    info = {"model_path": str(own), "tokenizer_path": str(tmp_path / "other")}
    with pytest.raises(ValueError, match="has another vocabulary"):
        said(info, own)


@pytest.mark.parametrize("served", ["meta/some-model", "/nowhere/here", None, ""])
def test_what_cannot_be_compared_is_said_and_taken(tiny_folder: Path, served: str | None) -> None:
    (line,) = said({"model_path": served}, tiny_folder)
    assert "cannot be compared" in line
    assert said({"model_path": f"/elsewhere/{tiny_folder.name}"}, tiny_folder) == []


def test_answers_of_a_larger_vocabulary_end_the_stage(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt_id": i, "tokens": [5, 7, 9]} for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"work={tmp_path}", f"target={tiny_folder}", "drafter.edsd_layers=[1, 2]"]
    settings = load_settings(None, [*given, "generate.max_new_tokens=20"])

    def ask(prompt: Prompt) -> list[int]:
        return [9, 160 if prompt.prompt_id else 2]

    with pytest.raises(ValueError, match=r"prompt 1 with token 160, and .* has 160: it serves"):
        data.prepare(Workspace.of(settings), ask, 1, lambda line: None)
    assert len(read_answers(tmp_path / "answers.jsonl")) == 1


SERVED = {"dtype": "float32"}


@pytest.fixture
def server() -> Iterator[str]:
    """Says that it serves what ``SERVED`` holds."""
    with ScriptedServer(script=lambda request: Reply.json(SERVED)) as server:
        yield server.url


def test_prepare_asks_the_server_what_it_serves(
    server: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SERVED["model_path"] = str(other_weights(copied(tiny_folder, tmp_path / "other")))
    words = ["train", "prepare", "--target", str(tiny_folder), "--work", str(tmp_path / "work")]
    assert main([*words, "--server", server]) == 2
    assert "does not serve the target" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
    shutil.rmtree(tmp_path / "other")
