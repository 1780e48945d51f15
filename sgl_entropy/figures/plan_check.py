"""A plan against a finished training: each quantity as planned beforehand and as recorded.

Planned is what ``train --plan`` says while nothing is stored: lengths of answers are drawn, seconds
and memory measured now on a few steps. Recorded is what the stages left: the store's index and log,
and of each fit its log and checkpoint. No stage records its memory: the recorded one is that of a
few real steps, on the real store, in a fresh process. (Ours.)
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.base.json_file import read_lines
from sgl_entropy.base.tables import markdown_table
from sgl_entropy.drafter.config import Algorithm, DrafterConfig
from sgl_entropy.figures.train_throughput import widest_steps
from sgl_entropy.train.fit.checkpoints import Checkpoints
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.peak_memory import in_own_processes
from sgl_entropy.train.machine.processes import ProcessGroup, device_of
from sgl_entropy.train.plan.counts import muon_flops, training_flops
from sgl_entropy.train.plan.estimate import counted, trial_of
from sgl_entropy.train.plan.lengths import Lengths, expected_lengths
from sgl_entropy.train.plan.trial import answers_cost, fit_cost
from sgl_entropy.train.prompts.file import load_prompts
from sgl_entropy.train.samples.open_store import checked_store
from sgl_entropy.train.samples.store import Store
from sgl_entropy.train.settings.file import load_settings
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace

# A quantity is as planned when plan and record differ by no more than this, of the record.
ALLOWED = 0.25
Report = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """One quantity; ``ratio``: planned over recorded."""

    planned: float
    recorded: float
    ratio: float

    @property
    def as_planned(self) -> bool:
        return abs(self.ratio - 1) <= ALLOWED


Quantities = dict[str, Compared]


@dataclass(frozen=True)
class PlanCheck:
    """Plan and records of a store, and of fits by name."""

    store: Quantities
    fits: dict[str, Quantities]

    @property
    def as_planned(self) -> bool:
        """Whether all quantities are."""
        return all(
            one.as_planned for rows in (self.store, *self.fits.values()) for one in rows.values()
        )

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` writes it."""
        return {"allowed": ALLOWED, **asdict(self), "as_planned": self.as_planned}


@dataclass(frozen=True)
class Finished:
    """A fit's records: its settings (in ``work``), ``steps`` of the optimizer, rows through layer
    and head, wall ``seconds`` and learned ``parameters``. Picklable."""

    name: str
    algorithm: Algorithm
    config: DrafterConfig
    work: Workspace
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
    saved = Checkpoints(folder).load()
    if saved is None:
        raise ValueError(f"--check {folder}: no checkpoint.pt there; name the folder of a fit")
    work = _with_own_settings(folder, work)
    fit = work.settings.fit
    made, drafter = saved.identity.settings, saved.identity.drafter
    algorithm = DrafterConfig.from_dict(drafter, source=str(folder)).algorithm
    config = pipeline.drafter_config(work, algorithm)
    differ = [
        f"fit.{key}"
        for key, value in made.items()
        if key != "dtype" and value != getattr(fit, key, value)
    ]
    shape = config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size}
    differ += sorted(key for key in {*drafter, *shape} if drafter.get(key) != shape.get(key))
    if differ:
        raise ValueError(f"--check {folder}: made with another {', '.join(differ)}")
    if not _ended(folder / "fit.jsonl", fit.epochs):
        raise ValueError(f"--check {folder}: not finished, epoch {fit.epochs} is missing")
    return Finished(
        folder.name if not folder.name.startswith("seed-") else folder.parent.name,
        algorithm,
        config,
        work,
        saved.step,
        saved.costs.layer_rows,
        saved.costs.head_rows,
        saved.seconds,
        sum(math.prod(w.shape) for key, w in saved.drafter.items() if "2" not in key),
    )


def _with_own_settings(folder: Path, work: Workspace) -> Workspace:
    """With the recipe that the folder of a comparison's fit holds, if it is one."""
    own = folder / "fit.json"
    if not own.is_file():
        return work
    recipe = json.loads(own.read_text(encoding="utf-8"))["recipe"]
    del recipe["algorithm"]  # the checkpoint has it too
    overrides = [
        f"{section}.{key}={json.dumps(value)}"
        for section, values in recipe.items()
        for key, value in values.items()
    ]
    given = load_settings(None, overrides)
    settings = replace(work.settings, drafter=given.drafter, fit=given.fit)
    return replace(work, settings=settings)


def _ended(log: Path, epochs: int) -> bool:
    return any("validation" in row and row["epoch"] == epochs for row in read_lines(log))


def generation_seconds(store: Path) -> float | None:
    """Wall time of a store's making, from its log: of each worker the answer tokens of every run
    over their rate, the longest; None where there is no log."""
    runs: dict[int, list[dict[str, Any]]] = {}
    for row in read_lines(store / "generate.jsonl"):
        last = runs.setdefault(row["worker"], [])
        # Within a run, tokens rise; a lower count is the next run's first.
        if last and row["answer_tokens"] >= last[-1]["answer_tokens"]:
            last.pop()
        last.append(row)
    took = (
        sum(float(row["answer_tokens"]) / float(row["tokens_per_s"]) for row in last)
        for last in runs.values()
    )
    return max(took, default=None)


def check(work: Workspace, folders: Sequence[Path], report: Report) -> PlanCheck:
    """Plan and records of the store, and of the fits in ``folders``."""
    fits = [read_finished(folder, work) for folder in folders]
    store = checked_store(work)
    prompts, _ = load_prompts(work, report)
    lengths = expected_lengths(prompts, work.settings.generate, None)
    report("generation: a few steps")
    stored = _check_store(fits[0], store, lengths)
    fitted = {}
    for one in fits:
        report(f"{one.name}: a few steps, and memory")
        fitted[one.name] = _check_fit(one, lengths)
    return PlanCheck(stored, fitted)


def _check_store(first: Finished, store: Store, lengths: Lengths) -> Quantities:
    counts = counted(first.work, first.config, lengths)
    quantities: dict[str, tuple[float, float]] = {
        "sequences": (lengths.sequences, len(store.entries)),
        "answer tokens": (counts.answer_tokens, store.answer_tokens()),
        "tokens": (counts.tokens, sum(entry.length for entry in store.entries)),
        "bytes": (counts.store_bytes, store.bytes()),
    }
    took = generation_seconds(store.folder)
    if took is not None:
        trial = trial_of(first.work, first.config, lengths)
        quantities["seconds"] = (answers_cost(trial).seconds, took)
    return _compared(quantities)


def _check_fit(one: Finished, lengths: Lengths) -> Quantities:
    config, fit = one.config, one.work.settings.fit
    counts, cost = (
        counted(one.work, config, lengths),
        fit_cost(trial_of(one.work, config, lengths)),
    )
    (real,) = in_own_processes(_real_fit, widest_steps, [one], device_of(0))
    flops = training_flops(config, one.layer_rows, one.head_rows)
    return _compared(
        {
            "parameters": (counts.parameters, one.parameters),
            "optimizer steps": (counts.optimizer_steps, one.steps),
            "rows": (counts.fit_rows, one.layer_rows),
            "FLOPs": (
                counts.fit_flops + counts.optimizer_flops,
                flops + one.steps * muon_flops(config, fit),
            ),
            "bytes of memory": (cost.memory, real.memory.needed),
            "seconds": (cost.seconds, one.seconds),
        }
    )


def _real_fit(one: Finished) -> Fit:
    """The same fit at its first step, on the real store."""
    with tempfile.TemporaryDirectory() as scratch:
        group = ProcessGroup(device=torch.device(device_of(0)))
        return pipeline.make_fit(one.work, one.algorithm, Path(scratch), group)


def _compared(quantities: Mapping[str, tuple[float, float]]) -> Quantities:
    return {
        name: Compared(round(planned, 1), round(recorded, 1), round(planned / recorded, 3))
        for name, (planned, recorded) in quantities.items()
    }


def page(data: PlanCheck) -> str:
    """The figures as Markdown."""
    rows = [
        (
            f"{group}: {name}",
            f"{one.planned:,.0f}",
            f"{one.recorded:,.0f}",
            f"{one.ratio:.2f}",
            "yes" if one.as_planned else "no",
        )
        for group, quantities in {"store": data.store, **data.fits}.items()
        for name, one in quantities.items()
    ]
    header = ["quantity", "planned", "recorded", "planned / recorded", f"within {ALLOWED:.0%}"]
    return "\n\n".join(
        [
            "# Plans against finished trainings",
            "Planned: what `train --plan` says while nothing is stored, with drawn lengths of "
            "answers, and seconds and memory measured now on a few steps. Recorded: by the store "
            "and by each fit as it ran, beside whatever else this machine did then; memory by a "
            "few steps on the real store in a process of its own, over a bare one.",
            markdown_table(header, rows),
        ]
    )
