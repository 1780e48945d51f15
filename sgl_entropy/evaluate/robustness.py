"""How much acceptance foreign system prompts cost (EDSD paper, section 4.3, Tables 3 and 14).

A drafter learned under the target's own system prompt; deployments write others. Every drafter is
judged on the same greedy answers of the target under the same system prompts, so that differences
between drafters are paired.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.base.disk import naming_full_disk, write_whole
from sgl_entropy.base.identity import Identity
from sgl_entropy.drafter.config import default_eagle3_layer_ids
from sgl_entropy.drafter.model import Drafter, load_drafter
from sgl_entropy.evaluate.report import chat_prompts
from sgl_entropy.evaluate.walk import draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget

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


def measure(
    settings: RobustnessSettings, records: Path, report: Report, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Counts under the default and every foreign system prompt, then ``summarise``.

    Args:
        records: JSON Lines, one a system prompt and drafter: grows as the measurement goes, and
            what it holds of the same settings is not measured again.
    """
    key = settings.key()
    held = _read(records, key)
    kept = _prompts_that_always_fit(settings)
    target: PlainTarget | None = None
    drafters: dict[str, Drafter] = {}
    for index, system in enumerate([None, *settings.systems]):
        todo = [name for name in settings.drafters if (index, name) not in held]
        if not todo:
            continue
        if target is None:
            dtype = getattr(torch, settings.dtype)
            target = PlainTarget.from_folder(settings.target, dtype, device)
            drafters = {n: load_drafter(f).to(device) for n, f in settings.drafters.items()}
        layers = sorted({layer for name in todo for layer in _layers(drafters[name], target)})
        prompts = chat_prompts(settings.target, kept, settings.max_prompt_tokens, system)
        flat = [(group, one) for group, some in prompts.items() for one in some]
        what = "its own system prompt" if system is None else f"system prompt {index - 1}"
        answers = greedy_answers(
            target,
            [one for _, one in flat],
            settings.max_new_tokens,
            layers,
            report=lambda line, what=what: report(f"{what}: {line}"),  # type: ignore[misc]
        )
        for name in todo:
            at = [layers.index(layer) for layer in _layers(drafters[name], target)]
            rows: list[tuple[str, int, int]] = []
            for (group, _), answer in zip(flat, answers, strict=True):
                wide = answer.features.view(len(answer.features), len(layers), -1)
                tapped = replace(answer, features=wide[:, at].flatten(1))
                found = draft_answer(drafters[name], target.embedding, tapped, settings.depth)[0]
                rows.append((group, found.tokens, found.cycles))
            held[index, name] = rows
            line = {"key": key, "system": index, "drafter": name, "prompts": rows}
            with naming_full_disk(records), records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    counts = {
        name: [held[index, name] for index in range(len(settings.systems) + 1)]
        for name in settings.drafters
    }
    return summarise(counts)


def _layers(drafter: Drafter, target: PlainTarget) -> tuple[int, ...]:
    return drafter.config.target_layer_ids or default_eagle3_layer_ids(target.num_layers)


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


def _read(records: Path, key: str) -> dict[tuple[int, str], list[tuple[str, int, int]]]:
    held: dict[tuple[int, str], list[tuple[str, int, int]]] = {}
    if records.is_file():
        text = records.read_text(encoding="utf-8")
        # A last line that a crash cut off is measured again.
        for line in text[: text.rfind("\n") + 1].splitlines():
            row = json.loads(line)
            if row["key"] == key:
                held[row["system"], row["drafter"]] = [tuple(p) for p in row["prompts"]]
        if text and not text.endswith("\n"):
            write_whole(records.resolve(), text[: text.rfind("\n") + 1])
    return held


def summarise(
    counts: Mapping[str, Sequence[Sequence[tuple[str, int, int]]]],
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Any]:
    """Drops of tau by drafter, and how the first drafter's differs from the others'.

    tau is the mean over groups of tokens / cycles. A drop is 1 - tau under a foreign system prompt
    / tau under the target's own. Intervals: 95 %, from resampling the prompts of each group, the
    same for all drafters and system prompts.

    Args:
        counts: drafter -> for the default and each foreign system prompt: (group, tokens,
            cycles) of each prompt.

    Returns:
        ``drafters``: name -> ``tau`` (default), ``tau_by_system``, ``mean_drop`` with
        ``interval``, ``worst_drop``; ``differences``: of mean drops, first drafter minus each
        other, with ``interval``.
    """
    names = list(counts)
    groups = [group for group, _, _ in counts[names[0]][0]]
    order = list(dict.fromkeys(groups))
    members = [torch.tensor([i for i, g in enumerate(groups) if g == name]) for name in order]
    chance = torch.Generator().manual_seed(seed)
    drawn = [m[torch.randint(len(m), (resamples, len(m)), generator=chance)] for m in members]
    out: dict[str, Any] = {"groups": order, "prompts": len(groups), "drafters": {}}
    drops: dict[str, Tensor] = {}
    for name in names:
        # [systems, prompts, (tokens, cycles)]
        held = torch.tensor([[p[1:] for p in rows] for rows in counts[name]], dtype=torch.float64)
        tau = _tau(held, [m[None] for m in members])[:, 0]
        resampled = _tau(held, drawn)
        drops[name] = (1 - resampled[1:] / resampled[:1]).mean(0)
        drop = 1 - tau[1:] / tau[0]
        out["drafters"][name] = {
            "tau": round(float(tau[0]), 4),
            "tau_by_system": [round(float(one), 4) for one in tau[1:]],
            "mean_drop": round(float(drop.mean()), 4),
            "interval": _interval(drops[name]),
            "worst_drop": round(float(drop.max()), 4),
        }
    first = names[0]
    mean = {name: out["drafters"][name]["mean_drop"] for name in names}
    out["differences"] = {
        f"{first} - {name}": {
            "mean_drop": round(mean[first] - mean[name], 4),
            "interval": _interval(drops[first] - drops[name]),
        }
        for name in names[1:]
    }
    return out


def _tau(counts: Tensor, drawn: Sequence[Tensor]) -> Tensor:
    """[systems, prompts, 2] and, for each group, [resamples, drawn] -> [systems, resamples]."""
    pooled = [counts[:, rows].sum(2) for rows in drawn]
    return torch.stack([one[..., 0] / one[..., 1].clamp_min(1) for one in pooled]).mean(0)


def _interval(values: Tensor) -> list[float]:
    edges = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [round(float(edge), 4) for edge in edges]


def table(figures: Mapping[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{'drafter':<16} {'tau':>6}  {'mean drop':>9}  {'95 % interval':<18} {'worst drop':>10}"
    ]
    for name, one in figures["drafters"].items():
        low, high = one["interval"]
        spread = f"{low:+.1%} to {high:+.1%}"
        lines.append(
            f"{name:<16} {one['tau']:>6.3f}  {one['mean_drop']:>+9.1%}  {spread:<18} "
            f"{one['worst_drop']:>+10.1%}"
        )
    for name, one in figures["differences"].items():
        low, high = one["interval"]
        lines.append(f"{name}: {one['mean_drop']:+.1%} ({low:+.1%} to {high:+.1%})")
    return "\n".join(lines)


def page(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown page, where they come from left out."""
    count = figures["systems"]
    lines = [
        "# What foreign system prompts cost",
        "",
        f"tau: mean over {', '.join(figures['groups'])} of pooled tokens a cycle, greedy chains of "
        f"{figures['depth']} by the plain drafter, {figures['max_new_tokens']} tokens, "
        f"{figures['prompts']} prompts: under the target's own system prompt, and under {count} "
        "others. A drop is 1 - tau there / tau here; its mean is over the others. Intervals: 95 %, "
        "over prompts.",
        "",
        f"| drafter | own | {' | '.join(map(str, range(count)))} | mean drop | 95 % | worst |",
        f"| --- {'| ---: ' * (count + 4)}|",
    ]
    for name, one in figures["drafters"].items():
        low, high = one["interval"]
        taus = " | ".join(f"{tau:.2f}" for tau in one["tau_by_system"])
        lines.append(
            f"| {name} | {one['tau']:.2f} | {taus} | {one['mean_drop']:.1%} | "
            f"{low:.1%} to {high:.1%} | {one['worst_drop']:.1%} |"
        )
    for name, one in figures["differences"].items():
        low, high = one["interval"]
        lines += ["", f"Mean drop, {name}: {one['mean_drop']:+.1%} ({low:+.1%} to {high:+.1%})."]
    return "\n".join(lines)
