"""What ``sgl-entropy drafter eval`` reports: tau with an interval, by position, by uncertainty.

The counts come from the plain drafter (``judged``) or from a server's own counters
(``sgl_entropy/cli/drafter_eval.py`` asks it); both end in ``report``, so that they can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.drafter.config import default_eagle3_layer_ids
from sgl_entropy.drafter.model import Drafter, load_drafter
from sgl_entropy.evaluate.uncertainty import FirstDrafts, by_decile, heat_map, ratio_interval
from sgl_entropy.evaluate.walk import ChainFigures, answered_together, draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.tokenizer import chat_tokenizer

# (group, its figures) of one prompt
Counted = tuple[str, ChainFigures]


def chat_prompts(
    target: Path,
    groups: Mapping[str, Sequence[str]],
    max_prompt_tokens: int,
    system: str | None = None,
) -> dict[str, list[list[int]]]:
    """Token ids of each prompt as one user message in the target's own chat template.

    Args:
        groups: name -> prompts as text.
        max_prompt_tokens: longer prompts are left out: cut ones would be other prompts.
        system: a system message before each; None = what the template says by itself.

    Raises:
        ValueError: the tokenizer has no chat template or knows more tokens than the target, or a
            group keeps no prompt.
    """
    tokenizer = chat_tokenizer(target)
    before = [] if system is None else [{"role": "system", "content": system}]
    out: dict[str, list[list[int]]] = {}
    for name, texts in groups.items():
        ids = [
            list(
                tokenizer.apply_chat_template(
                    [*before, {"role": "user", "content": text}], add_generation_prompt=True
                )
            )
            for text in texts
        ]
        out[name] = [one for one in ids if len(one) <= max_prompt_tokens]
        if not out[name]:
            raise ValueError(f"{name}: every prompt is longer than {max_prompt_tokens} tokens")
    return out


def load_pair(
    target_folder: Path,
    drafter_folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[PlainTarget, Drafter, tuple[int, ...]]:
    """A target in ``dtype``, a drafter in float32, both on ``device``, and the layers it taps.

    Raises:
        DrafterError: they do not fit, or are not read here.
    """
    drafter = load_drafter(drafter_folder).to(device)
    target = PlainTarget.from_folder(target_folder, dtype, device)
    layers = drafter.config.target_layer_ids
    if layers is None:
        layers = default_eagle3_layer_ids(target.num_layers)
    width = drafter.config.tap_width // len(layers)
    vocab = target.embedding.shape[0]
    if width != target.hidden_size or drafter.config.vocab_size != vocab:
        raise DrafterError(
            f"{drafter_folder} drafts for a target of hidden size {width} and "
            f"{drafter.config.vocab_size} tokens; {target_folder} has {target.hidden_size} and "
            f"{vocab}"
        )
    if max(layers) >= target.num_layers:
        raise DrafterError(
            f"{drafter_folder} taps layer {max(layers)}; {target_folder} has {target.num_layers}"
        )
    return target, drafter, tuple(layers)


def judged(
    target_folder: Path,
    drafter_folder: Path,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    depth: int,
    max_new_tokens: int,
    dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Counted, FirstDrafts]]:
    """Greedy chains of ``depth`` drafts by the plain drafter against the plain target, prompt by
    prompt: (its number, its counts, its first drafts).

    Prompts of similar length are answered together; such batches come in a seeded random order,
    so that those before an interrupt are short and long ones.

    Raises:
        DrafterError: drafter and target do not fit, or are not read here.
        ValueError: the target has too few positions.
    """
    target, drafter, layers = load_pair(target_folder, drafter_folder, dtype, device)
    flat = [(group, prompt) for group, held in prompts.items() for prompt in held]
    longest = max(len(prompt) for _, prompt in flat) + max_new_tokens
    if longest > target.max_positions:
        raise ValueError(
            f"the longest prompt and {max_new_tokens} new tokens need {longest} positions; the "
            f"target has {target.max_positions}"
        )
    batches = answered_together([len(prompt) for _, prompt in flat], target.device)
    random.Random(0).shuffle(batches)
    done = 0
    for batch in batches:
        asked = [flat[i][1] for i in batch]
        answers = greedy_answers(target, asked, max_new_tokens, layers, len(batch))
        for i, answer in zip(batch, answers, strict=True):
            figures, drafts = draft_answer(drafter, target.embedding, answer, depth)
            yield i, (flat[i][0], figures), drafts.to("cpu")
        done += len(batch)
        if report is not None:
            report(f"offline: {done} of {len(flat)} prompts")


def report(counted: Sequence[Counted], drafts: FirstDrafts | None = None) -> dict[str, Any]:
    """The figures as JSON takes them.

    Returns:
        ``acceptance_length`` (pooled), its ``interval`` (95 %, over prompts), ``by_position``
        (acceptance given that all before it were accepted), ``cycles``, ``tokens``, the same of
        each of the ``groups``, ``mean_of_groups``, ``per_prompt`` (group, tokens, cycles); with
        ``drafts``, also ``by_target_entropy_decile`` and ``heat_map``.

    Raises:
        ValueError: no cycle was counted.
    """
    names = list(dict.fromkeys(group for group, _ in counted))
    groups = {name: _figures([one for group, one in counted if group == name]) for name in names}
    means = [group["acceptance_length"] for group in groups.values()]
    out: dict[str, Any] = {
        **_figures([one for _, one in counted]),
        "mean_of_groups": round(sum(means) / len(means), 4),
        "groups": groups,
        "per_prompt": [[group, one.tokens, one.cycles] for group, one in counted],
    }
    if drafts is not None:
        out["by_target_entropy_decile"] = by_decile(drafts.target_entropy, drafts.accepted)
        out["heat_map"] = heat_map(drafts)
    return out


def _figures(parts: Sequence[ChainFigures]) -> dict[str, Any]:
    pooled = parts[0]
    for one in parts[1:]:
        pooled = pooled + one
    low, high = ratio_interval([p.tokens for p in parts], [p.cycles for p in parts])
    return {
        "acceptance_length": round(pooled.tau, 4),
        "interval": [round(low, 4), round(high, 4)],
        "by_position": [round(a, 4) for a in pooled.acceptance],
        "cycles": pooled.cycles,
        "tokens": pooled.tokens,
        "prompts": len(parts),
    }
