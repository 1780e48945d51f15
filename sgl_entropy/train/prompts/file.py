"""The prompt file of a work folder, and the record beside it that says what it was made of.

Prompts are made once. A later stage with other settings, texts or another tokenizer is refused,
because it would silently go on with the earlier prompts. A file without a record is accepted: the
user brought it along, or it is older than the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sgl_entropy.base.disk import file_sha256, write_whole
from sgl_entropy.target.fingerprint import tokenizer_fingerprint
from sgl_entropy.target.tokenizer import load_tokenizer
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.prompts.texts import collect_texts, read_jsonl, tokenize
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


def record_of(path: Path) -> Path:
    """Where the record of the prompt file ``path`` lies."""
    return path.with_suffix(".json")


def load_prompts(work: Workspace, report: Report) -> tuple[list[Prompt], str]:
    """The prompt file's prompts (written on first use), without the skipped ones, and the sha256
    of the whole file.

    Raises:
        ValueError: nothing to make prompts of.
    """
    path = work.prompts_file
    if not path.exists():
        write_prompts(work, report)
    prompts = _without_skipped(read_prompts(path), work)
    return prompts, file_sha256(path)


def planned_prompts(work: Workspace, report: Report) -> list[Prompt]:
    """The prompts of ``load_prompts``: from the file, or made now and not kept, so that a plan
    does not tie anybody to its settings.

    Raises:
        ValueError: nothing to make prompts of.
    """
    if work.prompts_file.exists():
        return _without_skipped(read_prompts(work.prompts_file), work)
    prompts = make_prompts(work)
    report(f"{len(prompts)} prompts, made for this plan alone: `train prepare` keeps them")
    return _without_skipped(prompts, work)


def _without_skipped(prompts: list[Prompt], work: Workspace) -> list[Prompt]:
    skip = work.settings.prompts.skip
    if skip >= len(prompts):
        raise ValueError(
            f"prompts.skip is {skip}, and {work.prompts_file} holds {len(prompts)} prompts"
        )
    return prompts[skip:]


def make_prompts(work: Workspace) -> list[Prompt]:
    """The prompts that the settings ask for; nothing is written.

    Raises:
        ValueError: no files named, no texts in them, a tokenizer that does not fit, or prompts
            that are too long for the target.
    """
    given = work.settings.prompts
    if not given.questions and not given.conversations:
        raise ValueError("set prompts.questions or prompts.conversations to a JSON Lines file")
    texts = collect_texts(_path(given.questions), _path(given.conversations), given.seed)
    named = [name for name in (given.questions, given.conversations) if name]
    if not texts:
        raise ValueError(f"{' and '.join(named)}: no text to make a prompt of")
    tokenizer = load_tokenizer(work.target, work.vocab_size)
    if not tokenizer.chat_template:
        raise ValueError(f"{work.target}: its tokenizer has no chat template to put prompts into")
    prompts = tokenize(tokenizer, texts, given.max_tokens)
    refuse_unfit(prompts, work)
    return prompts


def write_prompts(work: Workspace, report: Report) -> None:
    """Write ``make_prompts``, and their record. Nothing is written unless all can be answered."""
    prompts, path = make_prompts(work), work.prompts_file
    path.parent.mkdir(parents=True, exist_ok=True)
    # The record first, so that no prompts of this version are without one.
    write_whole(record_of(path), json.dumps(_made_of(work), indent=1) + "\n")
    rows = [json.dumps({"prompt_id": p.prompt_id, "tokens": list(p.tokens)}) for p in prompts]
    write_whole(path, "\n".join(rows) + "\n")
    report(f"{len(prompts)} prompts in {path}")


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file.

    Raises:
        ValueError: a line that is no prompt (named), or none at all.
    """
    try:
        prompts = [
            Prompt(int(row["prompt_id"]), tuple(map(int, row["tokens"])))
            for row in read_jsonl(path)
        ]
        if not all(prompt.tokens for prompt in prompts):
            raise ValueError("a prompt without tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected prompt_id and tokens in every row, found another one ({error!r}): "
            "delete it, and the prompts are made again"
        ) from None
    if not prompts:
        raise ValueError(f"{path} holds no prompts: delete it, and they are made again")
    return prompts


def refuse_other_prompts(work: Workspace) -> None:
    """Compare the record of the prompt file with what is asked for now. Texts that are not named
    now, or whose file is gone, count as the same.

    Raises:
        ValueError: what differs, by its key.
    """
    given, path = work.settings.prompts, work.prompts_file
    before = json.loads(record_of(path).read_text(encoding="utf-8"))
    now = _made_of(work)
    if not given.questions and not given.conversations:
        now = {"tokenizer": now["tokenizer"]}  # the settings say nothing about prompts
    differ = [
        f"{key} was {_shown(before.get(key))}, now {_shown(value)}"
        for key, value in now.items()
        if not _same(before.get(key), value)
    ]
    if differ:
        raise ValueError(
            f"{path} was made with other settings: {'; '.join(differ)}. Give the earlier ones, "
            "name another work folder (--work), or delete this file, and with it the answers and "
            "the store that were made of it"
        )


def refuse_unfit(prompts: Sequence[Prompt], work: Workspace) -> None:
    """
    Raises:
        ValueError: a prompt with tokens that the target does not have, or so long that no answer
            of ``generate.max_new_tokens`` fits after it.
    """
    path, target, most = work.prompts_file, work.target, work.settings.generate.max_new_tokens
    vocabulary, positions = work.vocab_size, work.max_positions
    foreign = next(
        (p for p in prompts if not 0 <= min(p.tokens) <= max(p.tokens) < vocabulary), None
    )
    if foreign is not None:
        raise ValueError(
            f"{path}, prompt {foreign.prompt_id}: holds tokens outside of the {vocabulary:,} that "
            f"{target} has: it was made with another tokenizer"
        )
    longest = max(prompts, key=lambda prompt: len(prompt.tokens))
    if len(longest.tokens) + most > positions:
        room = positions - most
        cut = f"prompts.max_tokens to at most {room}, or " if room > 0 else ""
        raise ValueError(
            f"{path}, prompt {longest.prompt_id}: its {len(longest.tokens)} tokens and "
            f"generate.max_new_tokens = {most} are more than the {positions} positions "
            f"of {target}: set {cut}generate.max_new_tokens lower"
        )


def refuse_too_few(numbers: Sequence[int], every: int, what: str) -> None:
    """
    Args:
        numbers: of prompts, of which every ``every``-th is held out for validation.
        what: they are, and where, for the message.

    Raises:
        ValueError: nothing is left to learn from.
    """
    if all(number % every == 0 for number in numbers):
        raise ValueError(
            f"{len(numbers)} {what}, all of them held out for validation (fit.validation_every = "
            f"{every}): none is left to learn from; give more texts, or another validation_every"
        )


def _made_of(work: Workspace) -> dict[str, Any]:
    """What decides the prompts, by the settings' keys, as the record holds it."""
    given = work.settings.prompts
    return {
        "prompts.questions": _source(given.questions),
        "prompts.conversations": _source(given.conversations),
        "prompts.max_tokens": given.max_tokens,
        "prompts.seed": given.seed,
        "tokenizer": {"name": work.target.name, "sha256": tokenizer_fingerprint(work.target)},
    }


def _source(name: str) -> dict[str, Any] | None:
    path = _path(name)
    if path is None:
        return None
    if not path.is_file():
        return {"name": path.name}
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        key = "sha256" if "sha256" in before and "sha256" in now else "name"
        return bool(before.get(key) == now.get(key))
    return bool(before == now)


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return "none" if value is None else str(value)
    digest = value.get("sha256")
    return f"{value.get('name')}" + (f" (sha256 {digest[:8]})" if digest else "")


def _path(name: str) -> Path | None:
    return Path(name).expanduser() if name else None
