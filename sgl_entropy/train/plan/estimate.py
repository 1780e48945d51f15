"""``train --plan``: what ``prepare``, ``features`` and ``fit`` will cost, before they run.

What is answered or stored already costs nothing. Nothing is written. (Ours.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.train.answers.file import ROUND, read_answers
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import device_of
from sgl_entropy.train.plan.counts import REACHED, Counts, count, keeps_features, kept_bytes
from sgl_entropy.train.plan.lengths import Lengths, expected_lengths
from sgl_entropy.train.plan.trial import Cost, Trial, data_cost, fit_cost
from sgl_entropy.train.prompts.file import planned_prompts
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import made_with
from sgl_entropy.train.stages.drafter import drafter_config
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will cost.

    Attributes:
        data: of answers and features; fit: of the optimizer steps.
        basis: what seconds and memory rest on.
        notes: what a reader has to know.
    """

    algorithm: Algorithm
    lengths: Lengths
    counts: Counts
    data: Cost
    fit: Cost
    basis: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` writes it."""
        return {
            "algorithm": self.algorithm,
            "lengths": {
                "sequences": self.lengths.sequences,
                "to_generate": len(self.lengths.new),
                "prompt": round(self.lengths.prompt, 1),
                "answer": round(self.lengths.answer, 1),
                "origin": self.lengths.origin,
            },
            **asdict(self.counts),
            "bytes_per_token": round(self.counts.store_bytes / self.counts.tokens, 1),
            "generate_memory_bytes": self.data.memory,
            "fit_memory_bytes": self.fit.memory,
            "generate_seconds": round(self.data.seconds, 1),
            "fit_seconds": round(self.fit.seconds, 1),
            "basis": self.basis,
            "notes": list(self.notes),
        }


def plan(work: Workspace, algorithm: Algorithm, report: Report = print) -> TrainingPlan:
    """Count the training, and try a few steps of it on this machine: about a minute."""
    lengths = known_lengths(work, report)
    config = drafter_config(work, algorithm)
    counts = counted(work, config, lengths)
    report("measuring a few steps of each stage, about a minute")
    trial = trial_of(work, config, lengths)
    data, fit = data_cost(trial), fit_cost(trial)
    basis = "measured here: a few steps of each stage"
    if torch.cuda.is_available():
        basis += f", the fit's on {torch.cuda.get_device_name()}"
    return TrainingPlan(
        algorithm, lengths, counts, data, fit, basis, _notes(work, config, lengths, fit)
    )


def counted(work: Workspace, config: DrafterConfig, lengths: Lengths) -> Counts:
    """What a plan says of every machine."""
    return count(lengths, work.model, len(work.stored_layers), config, work.settings.fit)


def trial_of(work: Workspace, config: DrafterConfig, lengths: Lengths) -> Trial:
    """What is to be tried, to measure the seconds and the memory of the stages."""
    device = device_of(0) if work.settings.fit.online else "cpu"
    dtype = resolve_dtype(work.settings.generate.dtype, made_with(work.store_folder), device)
    return Trial(work, config, lengths, dtype)


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


def _notes(work: Workspace, config: DrafterConfig, lengths: Lengths, cost: Cost) -> tuple[str, ...]:
    fit, notes = work.settings.fit, []
    if fit.online and fit.hold_gb and not keeps_features(config, lengths, fit):
        notes.append(
            f"fit.hold_gb has no room for the features, which take "
            f"{kept_bytes(config, lengths, fit) / 1e9:.1f} GB: they are computed anew in every "
            "epoch"
        )
    if fit.reached_only:
        notes.append(
            f"fit.reached_only: of the chains at a draft step, {REACHED:.0%} are assumed to go on; "
            "with a good drafter it is more"
        )
    if torch.cuda.is_available():
        room = torch.cuda.get_device_properties(0).total_memory
        if cost.memory > room:
            notes.append(
                f"does not fit: the fit needs {cost.memory / 1e9:.1f} GB, the GPU has "
                f"{room / 1e9:.0f}; lower fit.hold_gb or fit.rows"
            )
    return tuple(notes)


def table(one: TrainingPlan) -> str:
    """The plan for people."""
    lengths, counts = one.lengths, one.counts
    stored = counts.store_bytes
    made = counts.generate_flops + counts.feature_flops
    learned = counts.fit_flops + counts.online_flops + counts.optimizer_flops
    rows = [
        ("sequences", f"{lengths.sequences:,} ({len(lengths.new):,} to be answered)"),
        ("", f"mean prompt {lengths.prompt:.0f}, answer {lengths.answer:.0f} tokens"),
        ("", lengths.origin),
        ("answer tokens", f"{counts.answer_tokens:,} ({counts.tokens:,} with prompts)"),
        (
            "feature store",
            f"{stored / 1e9:.2f} GB" if stored else "none: features are computed online",
        ),
        ("", f"{stored / counts.tokens:.0f} bytes a token" if stored else ""),
        ("answers + features", f"{made:.2e} FLOPs, {_duration(one.data.seconds)}"),
        ("", f"{one.data.memory / 1e9:.2f} GB of memory" if made else ""),
        ("fit", f"{learned:.2e} FLOPs, {counts.fit_rows:,} rows"),
        ("", _part(counts.online_flops, "by the target, online")),
        ("", _part(counts.optimizer_flops, "by Muon, in float32")),
        ("", f"{counts.optimizer_steps:,} steps, {_duration(one.fit.seconds)}"),
        ("", f"{one.fit.memory / 1e9:.2f} GB of memory"),
    ]
    head = f"{one.algorithm} on this machine ({one.basis})"
    lines = [f"  {name:<20} {value}" for name, value in rows if value]
    return "\n".join([head, *lines, *(f"note: {note}" for note in one.notes)])


def _part(flops: float, what: str) -> str:
    return f"{flops:.2e} of them {what}" if flops else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
