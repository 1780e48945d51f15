"""Fit and judge a training comparison: one store, several recipes and seeds.

Every recipe and seed is fitted in a folder of its own and resumed there; finished ones are not done
again. ``judge`` then measures all on the same answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch

from sgl_entropy.base.disk import write_whole
from sgl_entropy.train.compare.file import Comparison, FitJob
from sgl_entropy.train.compare.judge import Judge
from sgl_entropy.train.compare.records import FitRecord, JudgedFit
from sgl_entropy.train.compare.side_by_side import fit_side_by_side
from sgl_entropy.train.fit.export import export_drafter
from sgl_entropy.train.fit.loop import run_fit
from sgl_entropy.train.machine.processes import ProcessGroup, device_of
from sgl_entropy.train.samples import open_store
from sgl_entropy.train.samples.store import Samples
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


def run(work: Workspace, comparison: Comparison, workers: int, report: Report) -> list[JudgedFit]:
    """Fit what is not fitted, judge what is not judged; one record a job, in the jobs' order.

    Args:
        work: the target and the folder that all recipes share.
        workers: processes that fit at once, each with one thread, on the GPU where there is one.
    """
    jobs = comparison.jobs()
    judge = Judge(work, comparison, report)  # refuses layers before any fit
    todo = [job for job in jobs if not job.fitted]
    _make_vocabularies(work, todo)
    _fit_all(todo, workers, report)
    return [judge.judged(job) for job in jobs]


def _make_vocabularies(shared: Workspace, todo: Sequence[FitJob]) -> None:
    """One process makes them, so that several never write one at once. Jobs share the store."""
    store: Samples | None = None
    done: set[tuple[int, float, int]] = set()
    for job in todo:
        given = job.settings
        key = (
            given.drafter.draft_vocab_size,
            given.drafter.prompt_weight,
            given.fit.validation_every,
        )
        if given.fit.start or key not in done:
            work = replace(shared, settings=given)
            store = store or open_store.open_store(work)
            pipeline.make_vocabulary(work, store)
            done.add(key)


def fit_job(job: FitJob, report: Report = print) -> None:
    """Fit and export one job; its folder's ``drafter`` appears only when it is whole."""
    torch.set_num_threads(1)
    group = ProcessGroup(device=torch.device(device_of(0)))
    work = Workspace.of(job.settings)
    fit = pipeline.make_fit(work, job.recipe.algorithm, job.folder, group)
    run_fit(fit, lambda line: report(f"{job.name}: {line}"))
    done = {"recipe": job.decides, **asdict(FitRecord.of(fit))}
    write_whole(job.folder / "fit.json", json.dumps(done) + "\n")
    export_drafter(fit.drafter, fit.side.tap_scale, job.folder / "drafter")
    fit.checkpoints.forget_previous()


def _fit_all(todo: Sequence[FitJob], workers: int, report: Report) -> None:
    if not todo:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    if workers == 1 or len(todo) == 1:
        for job in todo:
            fit_job(job, report)
        return
    report(f"{len(todo)} drafters to fit, {workers} at once")
    fit_side_by_side(_fit_quietly, todo, workers, report)


def _fit_quietly(job: FitJob) -> None:
    fit_job(job, lambda line: print(line, file=sys.stderr, flush=True))
