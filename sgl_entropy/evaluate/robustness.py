"""How much acceptance foreign system prompts cost (EDSD paper, section 4.3, Tables 3 and 14).

A drafter is trained under the target's own system prompt; deployments write others. All drafters
are judged on the same greedy answers under the same system prompts, so that their differences are
paired.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.disk import naming_full_disk, write_whole
from sgl_entropy.base.identity import Identity
from sgl_entropy.base.tables import markdown_table, text_table
from sgl_entropy.base.typed_json import FLAT
from sgl_entropy.evaluate.offline import chat_prompts, load_drafter_of
from sgl_entropy.evaluate.tau import PromptCounts, group_means
from sgl_entropy.evaluate.walk import draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.verify.resampling import interval

Report = Callable[[str], None]


@dataclass(frozen=True)
class RobustnessSettings:
    """What is measured.

    Attributes:
        target: its folder.
        drafters: name -> folder.
        groups: name -> prompts as text.
        systems: the foreign system prompts.
        depth: of the draft chains.
        max_new_tokens: of each answer.
        max_prompt_tokens: prompts that are longer under any system prompt are left out of all.
        dtype: the target's.
    """

    target: Path
    drafters: Mapping[str, Path]
    groups: Mapping[str, Sequence[str]]
    systems: Sequence[str]
    depth: int = 4
    max_new_tokens: int = 96
    max_prompt_tokens: int = 2048
    dtype: str = "float32"

    def key(self) -> str:
        """A digest of all that decides the counts, weights included."""
        parts = [
            Identity.of(self.target).sha256,
            {name: Identity.of(folder).sha256 for name, folder in self.drafters.items()},
            dict(self.groups),
            list(self.systems),
            [self.depth, self.max_new_tokens, self.max_prompt_tokens, self.dtype],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DrafterDrops:
    """How one drafter's tau falls under foreign system prompts.

    A drop is 1 - tau there / tau under the target's own system prompt.

    Attributes:
        tau: under the target's own: the mean over groups of tokens / cycles.
        tau_by_system: under each foreign one.
        interval: of the mean drop, 95 %, over prompts.
    """

    tau: float
    tau_by_system: tuple[float, ...]
    mean_drop: float
    interval: tuple[float, float]
    worst_drop: float


@dataclass(frozen=True)
class DropDifference:
    """Between two drafters' mean drops, with its 95 % interval."""

    mean_drop: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class RobustnessFigures:
    """Drops by drafter; ``differences``: of the first drafter minus each other."""

    groups: tuple[str, ...]
    prompts: int
    drafters: Mapping[str, DrafterDrops]
    differences: Mapping[str, DropDifference]

    def table(self) -> str:
        """For people."""
        rows = [
            (
                name,
                f"{one.tau:.3f}",
                f"{one.mean_drop:+.1%}",
                "{:+.1%} to {:+.1%}".format(*one.interval),
                f"{one.worst_drop:+.1%}",
            )
            for name, one in self.drafters.items()
        ]
        header = ("drafter", "tau", "mean drop", "95 % interval", "worst drop")
        lines = [
            "{}: {:+.1%} ({:+.1%} to {:+.1%})".format(name, one.mean_drop, *one.interval)
            for name, one in self.differences.items()
        ]
        return "\n".join([text_table(header, rows), *lines])


@dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """All that ``drafter robustness --json`` writes.

    Attributes:
        systems: foreign system prompts, their number.
        systems_sha256: of their file; texts_sha256: file -> of its bytes.
        dtype: the target's.
        provenance: see ``base.provenance``.
    """

    figures: RobustnessFigures = field(metadata=FLAT)
    systems: int
    systems_sha256: str | None = None
    texts_sha256: Mapping[str, str] | None = None
    depth: int
    max_new_tokens: int
    dtype: str | None = None
    provenance: Mapping[str, Any]

    def page(self) -> str:
        """The figures as Markdown, without their provenance."""
        figures = self.figures
        rows = [
            (
                name,
                *(f"{tau:.2f}" for tau in (one.tau, *one.tau_by_system)),
                f"{one.mean_drop:.1%}",
                "{:.1%} to {:.1%}".format(*one.interval),
                f"{one.worst_drop:.1%}",
            )
            for name, one in figures.drafters.items()
        ]
        header = ("drafter", "own", *map(str, range(self.systems)), "mean drop", "95 %", "worst")
        lines = [
            "# What foreign system prompts cost",
            f"tau: mean over {', '.join(figures.groups)} of pooled tokens a cycle, greedy chains "
            f"of {self.depth} by the plain drafter, {self.max_new_tokens} tokens, "
            f"{figures.prompts} prompts: under the target's own system prompt, and under "
            f"{self.systems} others. A drop is 1 - tau there / tau here; its mean is over the "
            "others. Intervals: 95 %, over prompts.",
            markdown_table(header, rows),
        ]
        for name, one in figures.differences.items():
            low, high = one.interval
            lines.append(f"Mean drop, {name}: {one.mean_drop:+.1%} ({low:+.1%} to {high:+.1%}).")
        return "\n\n".join(lines)


def measure(
    settings: RobustnessSettings, records: Path, report: Report, device: torch.device | str = "cpu"
) -> RobustnessFigures:
    """Counts under the target's own and every foreign system prompt, then ``summarise``.

    Args:
        records: JSON Lines, one a system prompt and drafter, written as the measurement goes; what
            it has of the same settings is not measured again.
    """
    key = settings.key()
    counts = _read(records, key)
    prompts = _prompts_that_always_fit(settings)
    target: PlainTarget | None = None
    for index, system in enumerate([None, *settings.systems]):
        todo = [name for name in settings.drafters if (index, name) not in counts]
        if not todo:
            continue
        if target is None:
            dtype = getattr(torch, settings.dtype)
            target = PlainTarget.from_folder(settings.target, dtype, device)
            drafters = {n: load_drafter_of(target, f) for n, f in settings.drafters.items()}
        layers = sorted({layer for name in todo for layer in drafters[name][1]})
        asked = chat_prompts(settings.target, prompts, settings.max_prompt_tokens, system)
        flat = [(group, one) for group, some in asked.items() for one in some]
        what = "its own system prompt" if system is None else f"system prompt {index - 1}"
        answers = greedy_answers(
            target,
            [one for _, one in flat],
            settings.max_new_tokens,
            layers,
            report=lambda line, what=what: report(f"{what}: {line}"),  # type: ignore[misc]
        )
        for name in todo:
            drafter, taps = drafters[name]
            at = [layers.index(layer) for layer in taps]
            rows: list[PromptCounts] = []
            for (group, _), answer in zip(flat, answers, strict=True):
                wide = answer.features.view(len(answer.features), len(layers), -1)
                tapped = replace(answer, features=wide[:, at].flatten(1))
                figures = draft_answer(drafter, target.embedding, tapped, settings.depth)[0]
                rows.append(PromptCounts(group, figures.tokens, figures.cycles))
            counts[index, name] = rows
            line = {"key": key, "system": index, "drafter": name, "prompts": rows}
            with naming_full_disk(records), records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    systems = range(len(settings.systems) + 1)
    return summarise({n: [counts[index, n] for index in systems] for n in settings.drafters})


def _prompts_that_always_fit(settings: RobustnessSettings) -> dict[str, list[str]]:
    """Texts by group that stay within the limit under every system prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.target)
    longest = max(settings.systems, key=lambda system: len(tokenizer(system).input_ids))
    # The target's own may be the longest of all.
    either = [
        chat_prompts(settings.target, settings.groups, sys.maxsize, system)
        for system in (None, longest)
    ]
    most = settings.max_prompt_tokens
    kept: dict[str, list[str]] = {}
    for name, texts in settings.groups.items():
        lengths = zip(*(map(len, prompts[name]) for prompts in either), strict=True)
        kept[name] = [text for text, n in zip(texts, lengths, strict=True) if max(n) <= most]
        if not kept[name]:
            raise ValueError(f"{name}: every prompt is longer than {most} tokens")
    return kept


def _read(records: Path, key: str) -> dict[tuple[int, str], list[PromptCounts]]:
    counts: dict[tuple[int, str], list[PromptCounts]] = {}
    if records.is_file():
        text = records.read_text(encoding="utf-8")
        # A last line that a crash cut off is measured again.
        for line in text[: text.rfind("\n") + 1].splitlines():
            row = json.loads(line)
            if row["key"] == key:
                counts[row["system"], row["drafter"]] = [
                    PromptCounts(*one) for one in row["prompts"]
                ]
        if text and not text.endswith("\n"):
            write_whole(records.resolve(), text[: text.rfind("\n") + 1])
    return counts


def summarise(
    counts: Mapping[str, Sequence[Sequence[PromptCounts]]], resamples: int = 4000, seed: int = 0
) -> RobustnessFigures:
    """Drops of tau by drafter, and how the first drafter's differs from the others'.

    Intervals: 95 %, from resampling the prompts of each group, the same for all drafters and
    system prompts.

    Args:
        counts: drafter -> for the target's own and each foreign system prompt, of each prompt.
    """
    first, *others = counts
    prompts = counts[first][0]
    sides = [side for systems in counts.values() for side in systems]
    whole, resampled = group_means(sides, resamples, seed)
    # [drafters, systems], [resamples, drafters, systems]
    taus = whole.view(len(counts), -1)
    drops = 1 - taus[:, 1:] / taus[:, :1]
    again = resampled.view(resamples, len(counts), -1)
    mean_again = (1 - again[..., 1:] / again[..., :1]).mean(-1)
    drafters = {
        name: DrafterDrops(
            round(float(tau[0]), 4),
            tuple(round(one, 4) for one in tau[1:].tolist()),
            round(float(drop.mean()), 4),
            _interval(resamples_of),
            round(float(drop.max()), 4),
        )
        for name, tau, drop, resamples_of in zip(counts, taus, drops, mean_again.T, strict=True)
    }
    differences = {
        f"{first} - {name}": DropDifference(
            round(drafters[first].mean_drop - drafters[name].mean_drop, 4),
            _interval(mean_again[:, 0] - mean_again[:, at]),
        )
        for at, name in enumerate(others, 1)
    }
    groups = tuple(dict.fromkeys(one.group for one in prompts))
    return RobustnessFigures(groups, len(prompts), drafters, differences)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = interval(values)
    return round(low, 4), round(high, 4)
