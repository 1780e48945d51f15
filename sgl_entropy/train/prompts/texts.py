"""Prompts for the target: questions, users' turns and texts to summarise, from public sets.

Prompts are human text, or requests to summarise an earlier answer of the set; every answer that a
drafter learns from is the target's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sgl_entropy.base.texts import read_texts
from sgl_entropy.train.prompts.order import Prompt

SUMMARY_REQUESTS = (
    "Summarize the following text:\n\n{}",
    "Please write a short summary of this.\n\n{}",
    "Summarize this article: {}",
    "{}\n\nSum up the text above in a few sentences.",
)


_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant")


def read_jsonl(path: Path) -> list[Any]:
    """Rows of a JSON Lines file; empty lines are passed over.

    Raises:
        ValueError: not JSON Lines; names the line.
        OSError: the file cannot be read.
    """
    return [row for _, row in _numbered(path)]


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from None


def read_conversations(path: Path) -> list[list[tuple[str, str]]]:
    """The conversations of a file, each (who, what) of its turns.

    Raises:
        ValueError: rows of another form; names the line.
    """
    out = []
    for number, row in _numbered(path):
        try:
            turns = [(turn["from"], turn["value"]) for turn in row["conversations"]]
            if not all(isinstance(part, str) for turn in turns for part in turn):
                raise TypeError
        except (KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number}: prompts.conversations expects an object with "
                "`conversations` (list of {from, value}); rows with `turns`, `question` or `text`, "
                "and plain lines, go to prompts.questions"
            ) from None
        out.append(turns)
    return out


def human_turns(rows: Sequence[Sequence[tuple[str, str]]]) -> Iterator[tuple[int, str]]:
    """(turn number, text) of the users' turns of conversations."""
    for row in rows:
        yield from enumerate(text for who, text in row if who in _HUMAN)


def collect_texts(questions: Path | None, conversations: Path | None, seed: int) -> list[str]:
    """User messages from both files, shuffled with ``seed``; either may be None.

    The list has three parts, each shuffled separately: first a balanced mix; then, for budgets
    that exhaust it, equal numbers of the later turns, summaries and questions that the mix left
    out; then all the rest, with shorter and longer turns and shorter answers to summarise.

    Args:
        questions: a file as ``texts.read_texts`` reads it: the first turn of each row; three
            tenths as many as of the rest are taken.
        conversations: rows with ``conversations`` of ``from`` (human, gpt) and ``value``: first
            turns of any length, later turns that can stand alone (80 to 600 characters), and
            long answers as texts to summarise; in the last part later turns from 20 characters
            and answers from 300.

    Raises:
        ValueError: a file of another form, or an empty one; names it.
        OSError: no such file.
    """
    chance = random.Random(seed)
    texts: list[str] = []
    more: list[list[str]] = []
    last: list[str] = []
    if conversations is not None:
        rows = read_conversations(conversations)
        replies = [text for row in rows for who, text in row if who in _MODEL]
        first = [text for turn, text in human_turns(rows) if turn == 0 and len(text) >= 8]
        later = [text for turn, text in human_turns(rows) if turn and 80 <= len(text) <= 600]
        answers = [text for text in replies if 1200 <= len(text) <= 3000]
        chance.shuffle(later)
        chance.shuffle(answers)
        texts += first + later[: len(first) // 3]
        taken = len(first) // 8
        texts += [_summary_request(text, chance) for text in answers[:taken]]
        summaries = [_summary_request(text, random.Random(text)) for text in answers[taken:]]
        more += [later[len(first) // 3 :], summaries]
        last += [
            text
            for turn, text in human_turns(rows)
            if turn and len(text) >= 20 and not 80 <= len(text) <= 600
        ]
        last += [
            _summary_request(text, random.Random(text))
            for text in replies
            if 300 <= len(text) < 1200
        ]
    if questions is not None:
        asked = [text.prompt for text in read_texts(questions)]
        chance.shuffle(asked)
        taken = max(1, len(texts) * 3 // 10) if texts else len(asked)
        texts += asked[:taken]
        more.append(asked[taken:])
    chance.shuffle(texts)
    equal = min(map(len, more))
    rest = [text for kind in more for text in kind[:equal]]
    chance.shuffle(rest)
    last += [text for kind in more for text in kind[equal:]]
    chance.shuffle(last)
    return texts + rest + last


def _summary_request(text: str, chance: random.Random) -> str:
    return chance.choice(SUMMARY_REQUESTS).format(text)


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """One user message each, in the chat template, ready to be answered.

    Messages too long for ``max_tokens`` are cut before the template is applied: a long prompt
    matters more than its last sentence.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        ValueError: ``max_tokens`` leaves no room next to the chat template.
    """
    empty = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], add_generation_prompt=True
    )
    room = max_tokens - len(empty)
    if room < 1:
        raise ValueError(
            f"prompts.max_tokens is {max_tokens}, and the chat template alone takes {len(empty)}"
        )
    prompts = []
    for number, text in enumerate(texts):
        # JSON may hold half a surrogate pair, which no tokenizer accepts.
        text = text.encode("utf-8", "replace").decode()
        ids = tokenizer(text[: room * 12], add_special_tokens=False).input_ids
        if len(ids) > room:
            text = tokenizer.decode(ids[:room])
        message = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True)
        prompts.append(Prompt(number, tuple(ids)))
    return prompts
