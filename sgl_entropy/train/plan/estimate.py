"""``train --plan``: the settings, the machine or GPU, and what is there already, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.train.answers.file import ROUND, read_answers
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.plan.counts import REACHED, as_report, count, held_bytes
from sgl_entropy.train.plan.gpu import GPUS, Gpu, bound_by_kernels, fit_kernels, gpu_seconds
from sgl_entropy.train.plan.lengths import Lengths, expected_lengths
from sgl_entropy.train.plan.memory import fit_memory, generate_memory, online_memory
from sgl_entropy.train.plan.trial import Trial, measure_here
from sgl_entropy.train.prompts.file import Report, planned_prompts
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import made_with
from sgl_entropy.train.settings.file import TrainSettings
from sgl_entropy.train.stages.drafter import drafter_config
from sgl_entropy.train.workspace import Workspace


def plan(
    work: Workspace, algorithm: Algorithm, gpu: Gpu | None, report: Report = print
) -> dict[str, Any]:
    """What ``prepare``, ``features`` and ``fit`` will cost, before they run; see the module
    ``plan``. What is answered or stored already costs nothing. Nothing is written.

    Args:
        gpu: a described one; None = this machine, where a minute is spent on measuring.
    """
    settings, model = work.settings, work.model
    given, fit = settings.generate, settings.fit
    lengths = known_lengths(work, report)
    config = drafter_config(work, algorithm)
    layers = work.stored_layers
    counts = count(lengths, model, len(layers), config, fit)
    dtypes = ["bfloat16", "bfloat16"]
    notes = []
    if gpu is not None:
        held = fit.online and held_bytes(config, lengths, fit) <= fit.hold_gb * 1e9
        under = work.num_layers if fit.online and not held else 0
        kernels = fit_kernels(config, fit, counts.optimizer_steps, under)
        seconds = gpu_seconds(gpu, counts, lengths, model, given.slots, kernels)
        if bound_by_kernels(gpu, counts, kernels):
            notes.append(
                "fit is bound by small kernels: trainings side by side on this GPU take turns, and "
                "more fit.rows are nearly free"
            )
    else:
        dtypes = [
            resolve_dtype(given.dtype, made_with(work.store_folder)),
            resolve_dtype(fit.dtype),
        ]
        if torch.cuda.is_available():
            notes.append(
                f"this machine has a GPU ({torch.cuda.get_device_name()}): fit, compare and "
                "evaluate use it, prepare with fit.online=true, and features of answers that are "
                "there; generate does not. These seconds are of its CPU: --gpu "
                f"{'|'.join(GPUS)} estimates a GPU's"
            )
            report(notes[-1])
        report("measuring a few steps of each stage, about a minute")
        seconds = measure_here(
            Trial(
                str(work.target),
                layers,
                config,
                fit,
                lengths,
                given.slots,
                given.workers,
                dtypes[0],
            )
        )
    wide, fit_wide = (getattr(torch, dtype).itemsize for dtype in dtypes)
    taps = 0 if fit.online else len(layers)
    memory = {
        "generate": generate_memory(lengths, given, model, taps, wide),
        "fit": fit_memory(config, fit, lengths, fit_wide)
        + online_memory(config, fit, lengths, model, wide),
    }
    notes += _held_note(settings, config, lengths)
    if fit.reached_only:
        notes.append(
            f"fit.reached_only: {REACHED:.0%} of the chains at a draft step are taken to go on; a "
            "good drafter's are more"
        )
    if gpu is not None:
        notes += _fit_notes(gpu, memory)
    figures = as_report(algorithm, lengths, counts, seconds, memory, notes)
    if gpu is not None:
        figures["fits"] = max(memory.values()) <= gpu.memory
    return figures


def known_lengths(work: Workspace, report: Report) -> Lengths:
    """The sequences of the store and of the answer file, and those to come."""
    prompts = planned_prompts(work, report)
    given = work.settings.generate
    answered = read_answers(work.answers_file)
    if not work.settings.fit.online:
        store = checked_store(work) if any(work.store_folder.glob("*.safetensors")) else None
        return expected_lengths(prompts, given, store, answered)
    # One process writes the answers, at one temperature after the other.
    rounds = [
        Prompt(number * ROUND + prompt.prompt_id, prompt.tokens)
        for number in range(len(given.temperatures))
        for prompt in prompts
    ]
    return expected_lengths(rounds, replace(given, workers=1), None, answered)


def _held_note(settings: TrainSettings, config: DrafterConfig, lengths: Lengths) -> list[str]:
    fit = settings.fit
    if not fit.online or not fit.hold_gb:
        return []
    held = held_bytes(config, lengths, fit)
    if held <= fit.hold_gb * 1e9:
        return []
    return [
        f"fit.hold_gb would not hold the features, which take {held / 1e9:.1f} GB: they are "
        "computed anew in every epoch"
    ]


def _fit_notes(gpu: Gpu, memory: Mapping[str, int]) -> list[str]:
    lower = {"generate": "generate.slots", "fit": "fit.rows (or fit.hold_gb)"}
    return [
        f"does not fit: {stage} needs {need / 1e9:.1f} GB, the GPU has {gpu.memory / 1e9:.0f}; "
        f"lower {lower[stage]}"
        for stage, need in memory.items()
        if need > gpu.memory
    ]
