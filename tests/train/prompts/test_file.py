"""Prompts belong to what they were made of, and are refused before anything is spoilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_entropy.train.plan.counts import Counts
from sgl_entropy.train.plan.estimate import counted, known_lengths
from sgl_entropy.train.plan.lengths import Lengths
from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import data, drafter
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import VOCAB
from tests.train.fit.test_processes import work_folder

WORDS = ["what", "why", "how", "who", "when", "where", "is", "are", "the", "a"]
WORDS += ["cat", "dog", "sky", "sea", "red", "blue", "old", "new", "one", "two"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def quiet(line: str) -> None:
    del line


@pytest.fixture
def target(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny target with a tokenizer of a few words, one token each."""
    folder = tmp_path / "target"
    shutil.copytree(tiny_folder, folder)
    write_tokenizer(folder, WORDS)
    return folder


def write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    held = {word: 3 + i for i, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2} | held, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", chat_template=TEMPLATE
    ).save_pretrained(folder)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    write(path, [{"question": f"{a} is the {b}"} for a in WORDS[:4] for b in WORDS[10:14]])
    return path


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def asking(target: Path, asked: Path, tmp_path: Path) -> Callable[..., Workspace]:
    def made(*more: str, questions: Path = asked) -> Workspace:
        given = [f"work={tmp_path / 'work'}", f"target={target}", "prompts.max_tokens=32"]
        given += [f"prompts.questions={questions}", "generate.max_new_tokens=20"]
        settings = load_settings(None, [*given, "drafter.edsd_layers=[1, 2]", *more])
        return Workspace.of(settings)

    return made


Made = Callable[..., Workspace]


@pytest.mark.parametrize(
    "change", ["prompts.max_tokens=16", "prompts.seed=1", "prompts.conversations=talks.jsonl"]
)
def test_prompts_of_other_settings_are_refused(asking: Made, change: str, tmp_path: Path) -> None:
    data.prepare(asking(), None, 1, quiet)
    data.prepare(asking("prompts.skip=2"), None, 1, quiet)
    with pytest.raises(ValueError, match=rf"prompts\.jsonl was .*{change.split('=')[0]} was"):
        data.prepare(asking(change), None, 1, quiet)
    (tmp_path / "work" / "prompts.json").unlink()
    data.prepare(asking(change), None, 1, quiet)  # older than the record, or brought along


def test_a_plan_keeps_no_prompts(asking: Made, tmp_path: Path) -> None:
    """It says what those will cost that a later stage makes and keeps, and binds none to them."""
    lines: list[str] = []

    def planned(*more: str) -> tuple[Lengths, Counts]:
        given = asking("drafter.draft_vocab_size=96", *more)
        lengths = known_lengths(given, lines.append)
        return lengths, counted(given, drafter.drafter_config(given, "EDSD"), lengths)

    first = planned("prompts.skip=3")
    assert not (tmp_path / "work").exists()
    assert lines == ["16 prompts, made for this plan alone: `train prepare` keeps them"]
    data.prepare(asking("prompts.max_tokens=16"), None, 1, quiet)
    assert planned("prompts.skip=3") == first
    with pytest.raises(ValueError, match=r"prompts\.skip is 16, and .* holds 16 prompts"):
        planned("prompts.skip=16")


def test_prompts_of_other_texts_are_refused(
    asking: Made, target: Path, asked: Path, tmp_path: Path
) -> None:
    data.prepare(asking(), None, 1, quiet)
    asked.rename(tmp_path / "other-name.jsonl")
    data.prepare(asking(), None, 1, quiet)
    data.prepare(asking(questions=tmp_path / "other-name.jsonl"), None, 1, quiet)
    given = [f"work={tmp_path / 'work'}", f"target={target}"]
    load_prompts(Workspace.of(load_settings(None, given)), quiet)
    write(asked, [{"question": "who is one"}, {"question": "who is two"}])
    with pytest.raises(ValueError, match=r"prompts\.questions was asked\.jsonl \(sha256 .*--work"):
        data.prepare(asking(), None, 1, quiet)
    # What was answered already is known by the prompts themselves: it can still be learned from.
    assert len(load_prompts(asking(), quiet)[0]) > 2
    (tmp_path / "work" / "prompts.jsonl").unlink()
    lines: list[str] = []
    data.prepare(asking(), None, 1, lines.append)
    assert lines[0].startswith("2 prompts in")


def test_prompts_of_another_tokenizer_are_refused(asking: Made, target: Path) -> None:
    data.prepare(asking(), None, 1, quiet)
    write_tokenizer(target, WORDS[::-1])
    with pytest.raises(ValueError, match=r"tokenizer was target \(sha256 \w+\), now target"):
        data.prepare(asking(), None, 1, quiet)


def test_a_tokenizer_that_is_not_the_targets_is_refused(
    asking: Made, target: Path, tmp_path: Path
) -> None:
    write_tokenizer(target, [*WORDS, *(f"word{i}" for i in range(VOCAB))])
    with pytest.raises(ValueError, match="do not belong together"):
        data.prepare(asking(), None, 1, quiet)
    assert not (tmp_path / "work" / "prompts.jsonl").exists()
    (tmp_path / "work").mkdir()
    write(tmp_path / "work" / "prompts.jsonl", [{"prompt_id": 7, "tokens": [5, VOCAB]}])
    with pytest.raises(ValueError, match=r"prompt 7: holds tokens outside of the 160 .* tokenizer"):
        data.generate(asking(), quiet)


@pytest.mark.parametrize("text", ["", "\n\n", '{"question": " "}\n'])
def test_empty_texts_leave_the_work_folder_as_it_was(
    asking: Made, asked: Path, tmp_path: Path, text: str
) -> None:
    whole = asked.read_text()
    asked.write_text(text)
    with pytest.raises(ValueError, match=r"asked\.jsonl: holds no text"):
        data.prepare(asking(), None, 1, quiet)
    empty = tmp_path / "talks.jsonl"
    empty.write_text("")
    only = [f"prompts.conversations={empty}", "prompts.questions="]
    with pytest.raises(ValueError, match=r"talks\.jsonl: no text"):
        data.prepare(asking(*only), None, 1, quiet)
    asked.write_text(whole)
    data.prepare(asking(), None, 1, quiet)


@pytest.mark.parametrize("text", ["\n", "x\n", "{}\n", '{"prompt_id": 0, "tokens": []}\n', "[]\n"])
def test_a_spoilt_prompt_file_says_how_to_go_on(asking: Made, tmp_path: Path, text: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "prompts.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"prompts\.jsonl.*delete it"):
        data.prepare(asking(), None, 1, quiet)


def test_too_few_texts_are_said(asking: Made, asked: Path) -> None:
    with pytest.raises(ValueError, match=r"16 prompts in .*validation_every = 1\): none is left"):
        data.prepare(asking("fit.validation_every=1"), None, 1, quiet)
    with pytest.raises(ValueError, match=r"16 prompts in .*validation_every = 1\): none is left"):
        data.generate(asking("fit.validation_every=1"), quiet)


def test_prompts_longer_than_the_target_are_refused(
    asking: Made, asked: Path, tmp_path: Path
) -> None:
    write(asked, [{"question": "who is the old dog " * 40}, {"question": "who is one"}])
    with pytest.raises(ValueError, match=r"of .*target: set prompts\.max_tokens to at most 108"):
        data.prepare(asking("prompts.max_tokens=120"), None, 1, quiet)
    assert not list((tmp_path / "work").glob("*"))
    data.prepare(asking("prompts.max_tokens=108"), None, 1, quiet)
    with pytest.raises(ValueError, match=r"more than the 128 positions .* lower"):
        data.generate(asking("prompts.max_tokens=108", "generate.max_new_tokens=21"), quiet)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"turns": ["who is the dog", "why"]}\n'),
        ("a.jsonl", '{"conversations": [{"from": "user", "value": "who is the dog"}]}\n'),
        ("a.jsonl", '{"question": "who is the dog"}\n'),
        ("a.txt", "who is the dog\n"),
    ],
)
def test_questions_take_every_form(asking: Made, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text + text.replace("dog", "cat"))
    given = asking(questions=tmp_path / name)
    prompts, _ = load_prompts(given, quiet)
    assert sorted(p.tokens for p in prompts) == [(6, 9, 11, 13), (6, 9, 11, 14)]


@pytest.mark.parametrize(
    "line", ['{"turns": ["a"]}', '{"conversations": [{"from": "human"}]}', '{"question": "a"}', "3"]
)
def test_rows_that_are_no_conversations_are_named(asking: Made, tmp_path: Path, line: str) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"conversations": [{"from": "human", "value": "who is it"}]}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"talks\.jsonl, line 2: prompts\.conversations expects"):
        data.prepare(asking(f"prompts.conversations={talks}"), None, 1, quiet)


def test_answers_to_other_prompts_are_refused(asking: Made, tmp_path: Path) -> None:
    data.prepare(asking(), None, 1, quiet)
    path = tmp_path / "work" / "answers.jsonl"
    write(path, [{"prompt_id": 3, "prompt_length": 2, "tokens": [5, 6, 7, 8]}])
    for stage in (
        lambda: data.prepare(asking(), None, 1, quiet),
        lambda: data.features(asking()),
    ):
        with pytest.raises(ValueError, match="the answer to prompt 3 belongs to another"):
            stage()


def test_too_few_answers_are_said(tiny_store: Store, tiny_folder: Path, tmp_path: Path) -> None:
    work = work_folder(tmp_path / "work", tiny_store)
    count = len(tiny_store.entries)
    given = [f"work={work}", f"target={tiny_folder}", "fit.validation_every=1"]
    given += ["drafter.draft_vocab_size=96"]
    message = rf"{count} answers in {work}/.*: none is left to learn from"
    with pytest.raises(ValueError, match=message):
        drafter.make_fit(
            Workspace.of(load_settings(None, [*given, "drafter.edsd_layers=[1, 2]"])), "EDSD"
        )
    rows = [
        {
            "prompt_id": e.prompt_id,
            "prompt_length": e.prompt_length,
            "tokens": tiny_store.tokens(e).tolist(),
        }
        for e in tiny_store.entries
    ]
    write(work / "answers.jsonl", rows)
    given += ["fit.online=true", "generate.dtype=float32", "drafter.edsd_layers=[1, 2]"]
    with pytest.raises(ValueError, match=message):
        drafter.make_fit(Workspace.of(load_settings(None, given)), "EDSD")
