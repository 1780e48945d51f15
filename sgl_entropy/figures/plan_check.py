"""A plan against a finished training: each quantity as planned beforehand and as recorded.

Planned is what ``train --plan`` says while nothing is stored: lengths of answers are drawn, seconds
measured now on a few steps. Recorded is what the stages left: the store's index and log, and of
each fit its log and checkpoint. Memory is not recorded: a few real steps are run in a fresh
process. (Ours.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.figures.peak_memory import memory_of
from sgl_entropy.figures.train_throughput import OURS, Job, make_trainer, widest_steps
from sgl_entropy.figures.train_throughput_page import table
from sgl_entropy.train.fit.checkpoints import Checkpoints
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.plan.counts import count, muon_flops, muon_matrices, trained_weights
from sgl_entropy.train.plan.lengths import expected_lengths
from sgl_entropy.train.plan.memory import fit_memory
from sgl_entropy.train.plan.trial import Trial, fit_seconds, generate_seconds
from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import made_with
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace

# A quantity is as planned when plan and record differ by no more than this, of the record.
ALLOWED = 0.25
Report = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A fit's records: its recipe, ``steps`` of the optimizer, rows through layer and head, wall
    ``seconds`` and learned ``parameters``."""

    name: str
    algorithm: Algorithm
    settings: TrainSettings
    steps: int
    layer_rows: int
    head_rows: int
    seconds: float
    parameters: int


def read_finished(folder: Path, work: Workspace) -> Finished:
    """What a fit left in ``folder``.

    Args:
        work: with its recipe, unless the folder holds its own (those of ``compare`` do).

    Raises:
        ValueError: no fit there, one that has not ended, or one of other settings.
    """
    held = Checkpoints(folder).load()
    if held is None:
        raise ValueError(f"--check {folder}: no checkpoint.pt there; name the folder of a fit")
    settings, own = work.settings, folder / "fit.json"
    if own.is_file():
        recipe = json.loads(own.read_text(encoding="utf-8"))["recipe"]
        del recipe["algorithm"]  # the checkpoint has it too
        overrides = [
            f"{section}.{key}={json.dumps(value)}"
            for section, values in recipe.items()
            for key, value in values.items()
        ]
        given = load_settings(None, overrides)
        settings = replace(settings, drafter=given.drafter, fit=given.fit)
    made, drafter = held["identity"]["settings"], held["identity"]["drafter"]
    algorithm = DrafterConfig.from_dict(drafter, source=str(folder)).algorithm
    differ = [
        key
        for key, value in made.items()
        if key != "dtype" and value != getattr(settings.fit, key, value)
    ]
    config = pipeline.drafter_config(replace(work, settings=settings), algorithm)
    shape = config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size}
    differ = [f"fit.{key}" for key in differ]
    differ += sorted(key for key in {*drafter, *shape} if drafter.get(key) != shape.get(key))
    if differ:
        raise ValueError(f"--check {folder}: made with another {', '.join(differ)}")
    if not _ended(folder / "fit.jsonl", settings.fit.epochs):
        raise ValueError(f"--check {folder}: not finished, epoch {settings.fit.epochs} is missing")
    costs = held["costs"].values()
    name = folder.name if not folder.name.startswith("seed-") else folder.parent.name
    return Finished(
        name,
        algorithm,
        settings,
        held["step"],
        sum(cost["layer_rows"] for cost in costs),
        sum(cost["head_rows"] for cost in costs),
        held["seconds"],
        sum(math.prod(w.shape) for key, w in held["drafter"].items() if "2" not in key),
    )


def _ended(log: Path, epochs: int) -> bool:
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut short by an interrupt
    return any("validation" in row and row["epoch"] == epochs for row in rows)


def generation_seconds(store: Path) -> float | None:
    """Wall time of a store's making, from its log: of each worker the answer tokens of every run
    over their rate, the longest; None where there is no log."""
    path = store / "generate.jsonl"
    if not path.is_file():
        return None
    runs: dict[int, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        last = runs.setdefault(row["worker"], [])
        # Within a run, tokens rise; a lower count is the next run's first.
        if last and row["answer_tokens"] >= last[-1]["answer_tokens"]:
            last.pop()
        last.append(row)
    took = (
        sum(float(row["answer_tokens"]) / float(row["tokens_per_s"]) for row in last)
        for last in runs.values()
    )
    return max(took)


def check(work: Workspace, folders: Sequence[Path], report: Report) -> dict[str, Any]:
    """Plan and records of the store, and of the fits in ``folders``.

    Returns:
        ``allowed``; ``store``, and ``fits`` by name: quantity -> ``planned``, ``recorded``,
        ``ratio`` (planned over recorded); ``as_planned``: whether all are within ``allowed``.
    """
    fits = [read_finished(folder, work) for folder in folders]
    store = checked_store(work)
    folder = store.folder
    prompts, _ = load_prompts(work, report)
    given = work.settings.generate
    model = work.model
    lengths = expected_lengths(prompts, given, None)
    layers = len(work.stored_layers)

    def trial(config: DrafterConfig, one: TrainSettings) -> Trial:
        return Trial(
            str(work.target),
            store.tap_layers,
            config,
            one.fit,
            lengths,
            given.slots,
            given.workers,
            resolve_dtype(given.dtype, made_with(folder)),
        )

    first = fits[0]
    config = pipeline.drafter_config(replace(work, settings=first.settings), first.algorithm)
    counts = count(lengths, model, layers, config, first.settings.fit)
    report("generation: a few steps")
    held: dict[str, tuple[float, float]] = {
        "sequences": (lengths.sequences, len(store.entries)),
        "answer tokens": (counts.answer_tokens, store.answer_tokens()),
        "tokens": (counts.tokens, sum(entry.length for entry in store.entries)),
        "bytes": (counts.store_bytes, store.bytes()),
    }
    took = generation_seconds(folder)
    if took is not None:
        held["seconds"] = (generate_seconds(trial(config, first.settings)), took)
    out: dict[str, Any] = {"allowed": ALLOWED, "store": _compared(held), "fits": {}}
    for one in fits:
        report(f"{one.name}: a few steps, and memory")
        config = pipeline.drafter_config(replace(work, settings=one.settings), one.algorithm)
        counts = count(lengths, model, layers, config, one.settings.fit)
        layer, head = trained_weights(config)
        muon = sum(muon_flops(shape) for shape in muon_matrices(config, one.settings.fit))
        wide = getattr(torch, resolve_dtype(one.settings.fit.dtype)).itemsize
        planned = fit_memory(config, one.settings.fit, lengths, wide)
        memory = memory_of(make_trainer, widest_steps, Job(one.settings, one.algorithm, OURS))
        out["fits"][one.name] = _compared(
            {
                "parameters": (counts.parameters, one.parameters),
                "optimizer steps": (counts.optimizer_steps, one.steps),
                "rows": (counts.fit_rows, one.layer_rows),
                "FLOPs": (
                    counts.fit_flops + counts.optimizer_flops,
                    muon * one.steps + 6.0 * (layer * one.layer_rows + head * one.head_rows),
                ),
                "bytes of memory": (planned, memory.needed),
                "seconds": (fit_seconds(trial(config, one.settings)), one.seconds),
            }
        )
    out["as_planned"] = all(
        abs(row["ratio"] - 1) <= ALLOWED
        for rows in (out["store"], *out["fits"].values())
        for row in rows.values()
    )
    return out


def _compared(held: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "planned": round(planned, 1),
            "recorded": round(recorded, 1),
            "ratio": round(planned / recorded, 3),
        }
        for name, (planned, recorded) in held.items()
    }


def page(data: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [
            of if not i else "",
            name,
            f"{row['planned']:,.0f}",
            f"{row['recorded']:,.0f}",
            f"{row['ratio']:.2f}",
            "yes" if abs(row["ratio"] - 1) <= data["allowed"] else "no",
        ]
        for of, held in {"store": data["store"], **data["fits"]}.items()
        for i, (name, row) in enumerate(held.items())
    ]
    within = f"within {data['allowed']:.0%}"
    return "\n\n".join(
        [
            "# Plans against finished trainings",
            "Planned: what `train --plan` says while nothing is stored, with drawn lengths of "
            "answers and seconds measured now on a few steps. Recorded: by the store and by each "
            "fit as it ran, beside what else this machine did then; memory by a few real steps in "
            "a process of its own, over a bare one.",
            table(
                ["", "quantity", "planned", "recorded", "planned / recorded", within], rows, (0, 1)
            ),
        ]
    )
