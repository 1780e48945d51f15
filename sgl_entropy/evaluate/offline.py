"""The plain drafter judged against the plain target: no server runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.drafter.config import default_eagle3_layer_ids
from sgl_entropy.drafter.model import Drafter, load_drafter
from sgl_entropy.evaluate.report import JudgedPrompt
from sgl_entropy.evaluate.walk import answered_together, draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.target.tokenizer import chat_tokenizer


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
    target = PlainTarget.from_folder(target_folder, dtype, device)
    return target, *load_drafter_of(target, drafter_folder)


def load_drafter_of(target: PlainTarget, folder: Path) -> tuple[Drafter, tuple[int, ...]]:
    """A drafter in float32 on the target's device, and the layers it taps.

    Raises:
        DrafterError: it was made for a target of other sizes, or is not read here.
    """
    drafter = load_drafter(folder).to(target.device)
    config, vocab = drafter.config, target.embedding.shape[0]
    layers = config.target_layer_ids or default_eagle3_layer_ids(target.num_layers)
    width = config.tap_width // len(layers)
    if width != target.hidden_size or config.vocab_size != vocab:
        raise DrafterError(
            f"{folder} drafts for a target of hidden size {width} and {config.vocab_size} tokens; "
            f"the target has {target.hidden_size} and {vocab}"
        )
    if max(layers) >= target.num_layers:
        raise DrafterError(
            f"{folder} taps layer {max(layers)}; the target has {target.num_layers} layers"
        )
    return drafter, tuple(layers)


def judged(
    target_folder: Path,
    drafter_folder: Path,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    depth: int,
    max_new_tokens: int,
    dtype: torch.dtype = torch.float32,
    report: Callable[[str], None] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[JudgedPrompt]:
    """Greedy chains of ``depth`` drafts, prompt by prompt.

    Prompts of similar length are answered together; such batches come in a seeded random order,
    so that those before an interrupt are short and long ones.

    Raises:
        DrafterError: drafter and target do not fit, or are not read here.
        ValueError: the target has too few positions.
    """
    target, drafter, layers = load_pair(target_folder, drafter_folder, dtype, device)
    flat = [(group, prompt) for group, some in prompts.items() for prompt in some]
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
            yield JudgedPrompt(i, flat[i][0], figures, drafts.to("cpu"))
        done += len(batch)
        if report is not None:
            report(f"offline: {done} of {len(flat)} prompts")
