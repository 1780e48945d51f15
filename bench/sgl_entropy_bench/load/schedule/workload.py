"""Which prompts are sent: equal parts of several benchmarks, shuffled by seed, cycled."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.base.texts import text_of_row
from sgl_entropy_bench.load.schedule.arrivals import stream_seed

# The last built-in prompts of each benchmark serve for warm-up alone.
BUILT_IN = "workload.jsonl"


@dataclass(frozen=True)
class WorkloadPrompt:
    """One request's input: the user's message, and where it comes from."""

    id: str
    benchmark: str
    text: str


@dataclass(frozen=True)
class Workload:
    """What is measured, in the order in which it is sent, and what warms up before.

    Attributes:
        prompts: unique and shuffled; sent again from the first one when they run out.
        warmup: none of them among ``prompts``.
        source: for captions.
        whole: number of prompts of all clients of a shared load together.
        digest: hash of all of those.
    """

    prompts: tuple[WorkloadPrompt, ...]
    warmup: tuple[WorkloadPrompt, ...]
    source: str
    whole: int
    digest: str

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(sorted({prompt.benchmark for prompt in self.prompts}))


def load_workload(
    sources: Sequence[str],
    per_benchmark: int,
    seed: int,
    warmup: int = 8,
    share: tuple[int, int] = (0, 1),
) -> Workload:
    """Read prompts, take ``per_benchmark`` of each benchmark, keep others for warm-up, shuffle.

    Args:
        sources: JSON Lines files or folders of them (a file's name is its benchmark, unless a row
            has ``benchmark``), or ``hf:NAME[:SPLIT[:FIELD]]``; none = the built-in prompts.
        per_benchmark: at most this many of each; a smaller benchmark leaves its last prompts for
            the warm-up, if it has more than one.
        share: (i, n): take the part of client i of n. No two clients send the same prompt, or the
            prefix cache of the server would answer the second.

    Raises:
        ValueError: a broken line (named), no prompt, or none left to warm up with.
        OSError: not readable.
    """
    if per_benchmark < 1:
        raise ValueError(f"--per-benchmark must be at least 1, found {per_benchmark}")
    prompts: list[WorkloadPrompt] = []
    for source in sources:
        prompts += _read_source(source)
    if not sources:
        prompts = read_prompts(
            Path(str(importlib.resources.files("sgl_entropy_bench") / "data" / BUILT_IN))
        )
    groups: dict[str, list[WorkloadPrompt]] = {}
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.text not in seen:
            seen.add(prompt.text)
            groups.setdefault(prompt.benchmark, []).append(prompt)
    each = -(-warmup // len(groups)) if groups else 0
    kept, spare = [], []
    for group in groups.values():
        take = min(per_benchmark, max(1, len(group) - each))
        kept += group[:take]
        spare += group[take : take + each]
    if not kept:
        raise ValueError("the workload holds no prompt")
    if warmup and not spare:
        raise ValueError(
            "every prompt is measured, none is left to warm up with: give more prompts, a smaller "
            "--per-benchmark, or --warmup 0"
        )
    random.Random(stream_seed(seed, "prompts")).shuffle(kept)
    number, clients = share
    if len(kept) < clients:
        raise ValueError(f"{len(kept)} prompts are too few for {clients} clients")
    digest = hashlib.sha256(json.dumps([p.text for p in kept]).encode()).hexdigest()[:16]
    source = ", ".join(Path(s).name if not s.startswith("hf:") else s for s in sources)
    return Workload(
        tuple(kept[number::clients]),
        tuple(spare[:warmup]),
        source or "built-in prompts",
        len(kept),
        digest,
    )


def _read_source(source: str) -> list[WorkloadPrompt]:
    if source.startswith("hf:"):
        return _from_hub(source)
    path = Path(source).expanduser()
    if not path.is_dir():
        return read_prompts(path)
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{path} holds no .jsonl file")
    return [prompt for file in files for prompt in read_prompts(file)]


def read_prompts(path: Path) -> list[WorkloadPrompt]:
    """The prompts of a JSON Lines file: rows with ``turns`` (the first is sent), ``prompt``,
    ``question``, or ``conversations``.

    Raises:
        ValueError: a line that is no such row (named), or no line at all.
        OSError: not readable.
    """
    prompts = []
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    text = _prompt_of(row)
                except (ValueError, TypeError, KeyError, IndexError, StopIteration):
                    raise ValueError(
                        f"{path}:{number}: expected an object with turns, prompt, question or "
                        f"conversations"
                    ) from None
                name = str(row.get("benchmark", path.stem))
                prompts.append(WorkloadPrompt(f"{name}/{row.get('id', number)}", name, text))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}") from None
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _prompt_of(row: Any) -> str:
    text = text_of_row(row).prompt
    if not text.strip():
        raise TypeError
    return text


def _from_hub(source: str) -> list[WorkloadPrompt]:
    """``hf:NAME[:SPLIT[:FIELD]]``; without FIELD, the first of the keys that files may have."""
    name, _, rest = source[3:].partition(":")
    split, _, wanted = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{source}: `pip install datasets` to read data sets by name") from None
    try:
        rows = load_dataset(name, split=split or "test")
    except Exception as error:  # the library raises many kinds, for network and names alike
        raise ValueError(f"{source}: {error}") from None
    prompts = []
    for number, row in enumerate(rows):
        try:
            text = row[wanted] if wanted else _prompt_of(row)
        except (KeyError, StopIteration, TypeError, IndexError):
            raise ValueError(
                f"{source}: row {number} has {', '.join(sorted(row))}; name the field, as "
                f"hf:{name}:{split or 'test'}:FIELD"
            ) from None
        prompts.append(WorkloadPrompt(f"{name}/{number}", name, str(text)))
    return prompts
