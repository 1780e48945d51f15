"""Settings refuse what they do not know; stages take up what is done."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sgl_entropy.train.machine import dtype
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.prompts.draft_vocabulary import draft_vocabulary
from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.prompts.texts import tokenize
from sgl_entropy.train.samples.store import Entry, Samples, Store
from sgl_entropy.train.settings.drafter import DrafterSettings
from sgl_entropy.train.settings.file import (
    EvaluateSettings,
    GenerateSettings,
    PromptSettings,
    TrainSettings,
    load_settings,
)
from sgl_entropy.train.settings.fit import FitSettings
from sgl_entropy.train.settings.template import attributes, settings_file
from sgl_entropy.train.stages import data
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace
from tests.train.conftest import VOCAB, tiny_prompts


def test_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"fit": {"epochs": 7, "steps": [1, 2]}, "work": "w"}))
    settings = load_settings(path, ["fit.epochs=2", "generate.workers=1", "target=/t"])
    assert (settings.fit.epochs, settings.fit.steps, settings.work) == (2, (1, 2), "w")
    assert (settings.generate.workers, settings.target) == (1, "/t")


def test_the_printed_settings_are_the_defaults_and_say_what_each_is(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(settings_file())
    assert load_settings(path) == TrainSettings()
    keys = {line.split(" = ")[0] for line in path.read_text().splitlines() if " = " in line}
    for kind in (PromptSettings, GenerateSettings, DrafterSettings, FitSettings, EvaluateSettings):
        names = [field.name for field in fields(kind)]
        assert keys >= {*names}
        assert all(len(attributes(kind)[name]) > 5 for name in names)
    assert "# the share of all optimizer steps in which the rate rises to its peak.\nwarmup" in (
        path.read_text()
    )


def test_a_store_of_one_drafter_takes_its_layers_alone() -> None:
    def taps(*given: str) -> tuple[int, ...]:
        return load_settings(None, ["drafter.edsd_layers=[3, 9]", *given]).drafter.tap_layers(30)

    assert taps() == (1, 3, 9, 14, 26)
    assert taps('drafter.algorithms=["EDSD"]') == (3, 9)
    assert taps('drafter.algorithms=["EAGLE3"]') == (1, 14, 26)
    for wrong in ("[]", '["EAGLE"]', "[3]", "EDSD"):
        with pytest.raises(ValueError, match=r"drafter\.algorithms must (list some|be a list)"):
            taps(f"drafter.algorithms={wrong}")


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"fit": {"epoch": 7, "rows": "many"}, "generate": 3, "fitt": {}}))
    with pytest.raises(ValueError, match=r"fit\.epoch ") as error:
        load_settings(path)
    for part in ("fit.rows must be int", "generate must be a section", "unknown key fitt"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"fit\.epochs must be at least 1"):
        load_settings(None, ["fit.epochs=0"])
    with pytest.raises(ValueError, match=r"generate\.slots must be at least 1"):
        load_settings(None, ["generate.slots=0"])
    with pytest.raises(ValueError, match=r"prompts\.skip must be at least 0"):
        load_settings(None, ["prompts.skip=-1"])
    for section in ("fit", "generate"):
        with pytest.raises(ValueError, match=rf"{section}\.dtype must be one of"):
            load_settings(None, [f"{section}.dtype=float16"])
    with pytest.raises(ValueError, match=r"SECTION\.KEY=VALUE"):
        load_settings(None, ["fit.epochs"])


def test_draft_vocabulary_takes_the_frequent_and_sorts_by_id() -> None:
    answers = torch.tensor([5.0, 0.0, 9.0, 1.0, 0.0, 0.0])
    other = torch.tensor([0.0, 0.0, 0.0, 0.0, 30.0, 10.0])
    assert draft_vocabulary(answers, other, 3, 0.1).tolist() == [0, 2, 4]
    assert draft_vocabulary(answers, other, 3, 0.0).tolist() == [0, 2, 3]
    assert draft_vocabulary(answers, other, 3, 0.0, always=[5]).tolist() == [0, 2, 5]
    with pytest.raises(ValueError, match="7"):
        draft_vocabulary(answers, other, 7, 0.0)
    # As a whole: a hundred times the prompts say what the prompts say.
    assert draft_vocabulary(answers, other, 3, 0.1).equal(
        draft_vocabulary(answers, 100 * other, 3, 0.1)
    )


def test_the_vocabulary_is_that_of_the_store_it_is_asked_for(
    tiny_store: Store, tmp_path: Path
) -> None:
    """One that lies in the work folder from other answers, or another weight, is not taken."""
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "target").mkdir()
    model = {"eos_token_id": 2, "vocab_size": VOCAB}
    (tmp_path / "target" / "config.json").write_text(json.dumps(model))

    def chosen(entries: list[Entry], weight: float, every: int = 50) -> list[int]:
        settings = load_settings(
            None,
            [
                *(f"work={tmp_path}", f"target={tmp_path / 'target'}"),
                *("drafter.draft_vocab_size=40", f"drafter.prompt_weight={weight}"),
                f"fit.validation_every={every}",
            ],
        )
        part = cast(Samples, SimpleNamespace(entries=entries, tokens=tiny_store.tokens))
        return cast(list[int], pipeline.vocabulary(Workspace.of(settings), part).tolist())

    whole = chosen(tiny_store.entries, 0.0)
    assert whole == chosen(tiny_store.entries, 0.0)
    held = [e for e in tiny_store.entries if e.prompt_id % 3]
    assert chosen(tiny_store.entries, 0.0, every=3) == chosen(held, 0.0)
    assert chosen(held, 0.0) != whole
    assert chosen(held, 5.0) != chosen(held, 0.0)


def test_skipped_prompts_are_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    settings = load_settings(None, [f"work={tmp_path}", f"target={tiny_folder}", "prompts.skip=20"])
    prompts, _ = load_prompts(Workspace.of(settings), print)
    assert [prompt.prompt_id for prompt in prompts] == [20, 21, 22, 23]
    settings = load_settings(None, [f"work={tmp_path}", f"target={tiny_folder}", "prompts.skip=24"])
    with pytest.raises(ValueError, match="holds 24 prompts"):
        load_prompts(Workspace.of(settings), print)


def test_auto_takes_the_faster_arithmetic_unless_something_was_made_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(dtype, "matmul_seconds", seconds.__getitem__)
    assert resolve_dtype("auto") == "bfloat16"
    assert resolve_dtype("auto", "float32") == "float32"
    assert resolve_dtype("float32", "bfloat16") == "float32"
    seconds[torch.bfloat16] = 0.95  # faster, but not by what it costs
    assert resolve_dtype("auto") == "float32"


def test_the_clock_is_read() -> None:
    assert 0 < dtype.matmul_seconds(torch.float32, tries=1) < 5


@pytest.mark.usefixtures("one_process")
def test_generation_goes_on_where_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    """A second run with a larger budget answers the other prompts, and none twice."""
    rows = [{"prompt_id": p.prompt_id, "tokens": p.tokens} for p in tiny_prompts()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    base = [
        f"target={tiny_folder}",
        f"work={tmp_path}",
        "drafter.edsd_layers=[1, 2]",
        "generate.max_new_tokens=12",
        "generate.workers=1",
        "generate.slots=4",
        'generate.dtype="float32"',
    ]
    for budget in (40, 10_000):
        settings = load_settings(None, [*base, f"generate.answer_tokens={budget}"])
        data.generate(Workspace.of(settings), lambda line: None)
        store = Store(tmp_path / "store")
        ids = [entry.prompt_id for entry in store.entries]
        assert len(set(ids)) == len(ids)
        if budget == 40:
            assert 40 <= store.answer_tokens() < 150
            first = set(ids)
    assert first < set(ids)
    assert len(ids) >= 20
    assert store.tap_layers == (0, 1, 2)


def test_layers_come_from_a_select_report(tmp_path: Path) -> None:
    path = tmp_path / "select.json"
    choice = {"hidden_states": [4, 21], "target_layer_ids": [3, 20]}
    profiles = {"curvature": [0.0] * 31, "lidar": [0.0] * 31}
    path.write_text(json.dumps({"choice": choice, "profiles": profiles}))
    drafter = load_settings(None, [f"drafter.select_report={path}"]).drafter
    assert drafter.layers == (3, 20)
    assert {3, 20} <= set(drafter.tap_layers(30))
    choice["target_layer_ids"] = [4, 20]
    path.write_text(json.dumps({"choice": choice, "profiles": profiles}))
    with pytest.raises(ValueError, match=r"select\.json"):
        drafter.tap_layers(30)


def test_stored_layers_may_come_in_any_order() -> None:
    given = load_settings(None, ["generate.extra_layers=[5, 3, 3]"]).generate
    assert given.extra_layers == (5, 3, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.answer_length=1", r"fit\.answer_length must be 0 or at least 2"),
        ("fit.answer_length=-1", r"fit\.answer_length must be .*, found -1"),
        ("fit.clip=-1", r"fit\.clip must be above 0, found -1\.0"),
        ("fit.clip=NaN", r"fit\.clip must be above 0, found nan"),
        ("fit.learning_rate=0", r"fit\.learning_rate must be above 0 and finite, found 0\.0"),
        ("fit.learning_rate=Infinity", r"fit\.learning_rate must be above 0 and finite"),
        ("fit.warmup=7", r"fit\.warmup must be from 0 to 1, found 7\.0"),
        ("fit.final_rate=-0.1", r"fit\.final_rate must be from 0 to 1, found -0\.1"),
        ("fit.decay=-3", r"fit\.decay must be from 0 to 1, found -3\.0"),
        ("fit.checkpoint_seconds=-1", r"fit\.checkpoint_seconds must be at least 0, found -1\.0"),
        ("fit.seed=-1", r"fit\.seed must be from 0 to 9223372036854775807, found -1"),
        ("prompts.max_tokens=0", r"prompts\.max_tokens must be at least 1, found 0"),
        ("generate.extra_layers=[-1]", r"generate\.extra_layers must list layers from 0, found"),
        ("drafter.edsd_layers=[]", r"drafter\.edsd_layers must list layers from 0, found \[\]"),
        ("drafter.eagle3_layers=[-2]", r"drafter\.eagle3_layers must list layers from 0, found"),
        ("drafter.edsd_layers=[27, 14]", r"drafter\.edsd_layers must rise .*: \[14, 27\]"),
        ("drafter.edsd_layers=[14, 14]", r"must rise .*, found \[14, 14\]: name other layers"),
        ("drafter.eagle3_layers=[1, 9, 3]", r"drafter\.eagle3_layers must rise without repeats"),
        ("drafter.fuse_size=-1", r"drafter\.fuse_size must be at least 0, found -1"),
        ("drafter.draft_vocab_size=0", r"drafter\.draft_vocab_size must be at least 1, found 0"),
        ("drafter.prompt_weight=-0.5", r"drafter\.prompt_weight must be at least 0, found -0\.5"),
        ("evaluate.prompts=0", r"evaluate\.prompts must be at least 1, found 0"),
        ("evaluate.depth=0", r"evaluate\.depth must be at least 1, found 0"),
        ("evaluate.max_new_tokens=-5", r"evaluate\.max_new_tokens must be at least 1, found -5"),
        ("evaluate.dtype=bf16", r"evaluate\.dtype must be one of \('bfloat16', 'float32'\)"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_range(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_settings(None, [override])


def test_a_key_below_what_is_no_section_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--set target\.y=1: target is no section, but '/x'"):
        load_settings(None, ["target=/x", "target.y=1"])


def test_prompts_that_the_template_alone_fills_are_refused() -> None:
    """The text would be cut from its end."""

    class Template:
        def apply_chat_template(self, messages: object, **given: object) -> list[int]:
            return list(range(30))

    with pytest.raises(ValueError, match=r"prompts\.max_tokens is 30, .* template alone takes 30"):
        tokenize(Template(), ["a question"], 30)
