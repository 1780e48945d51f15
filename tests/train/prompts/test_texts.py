"""The list of prompts: a balanced part, then what the balance left out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_entropy.train.prompts.texts import collect_texts, tokenize


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(path: Path, count: int) -> Path:
    """``count`` conversations of two users' turns and one long answer each, all different."""
    turns = [
        [
            {"from": "human", "value": f"first turn {n}"},
            {"from": "gpt", "value": f"answer {n} " * 150},
            {"from": "human", "value": f"a later turn that can stand alone, number {n:03}, " * 2},
        ]
        for n in range(count)
    ]
    return write(path, [{"conversations": row} for row in turns])


def test_the_list_goes_on_after_its_balanced_part(tmp_path: Path) -> None:
    talks = conversations(tmp_path / "talks.jsonl", 48)
    asked = write(tmp_path / "asked.jsonl", [{"question": f"question {n}?"} for n in range(100)])

    texts = collect_texts(asked, talks, seed=0)

    balanced = 48 + 48 // 3 + 48 // 8 + (48 + 48 // 3 + 48 // 8) * 3 // 10
    base, rest = texts[:balanced], texts[balanced:]
    assert sum(text.startswith("first turn") for text in base) == 48
    assert sum(text.startswith("question") for text in base) == 21
    # The scarcest kind left over, later turns (48 - 16), sets the share of the other two.
    # Then the questions and the answers to summarise that are still left.
    rest, last = rest[: 3 * 32], rest[3 * 32 :]
    assert sum(text.startswith("question") for text in last) == 100 - 21 - 32
    assert len(last) == 100 - 21 - 32 + 48 - 6 - 32
    assert sum(text.startswith("question") for text in rest) == 32
    assert sum(text.startswith("a later turn") for text in rest) == 32
    assert not any(text.startswith("first turn") for text in rest)
    assert len(set(texts)) == len(texts), "no prompt twice"


def test_the_seed_decides_the_whole_list(tmp_path: Path) -> None:
    talks = conversations(tmp_path / "talks.jsonl", 48)

    first = collect_texts(None, talks, seed=3)

    assert first == collect_texts(None, talks, seed=3)
    assert first != collect_texts(None, talks, seed=4)


def test_questions_alone_are_all_taken_once(tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", [{"question": f"question {n}?"} for n in range(9)])

    texts = collect_texts(asked, None, seed=0)

    assert sorted(texts) == [f"question {n}?" for n in range(9)]


class Letters:
    """A token a letter, and a template of five."""

    def __call__(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
    ) -> list[int]:
        return [0, 0, 0, *(ord(letter) for letter in messages[0]["content"]), 1, 1]


def test_long_texts_are_cut_before_the_template() -> None:
    assert [prompt.tokens for prompt in tokenize(Letters(), ["abc", "d"], 7)] == [
        (0, 0, 0, ord("a"), ord("b"), 1, 1),
        (0, 0, 0, ord("d"), 1, 1),
    ]
    with pytest.raises(ValueError, match="max_tokens is 5, and the chat template alone takes 5"):
        tokenize(Letters(), ["abc"], 5)
