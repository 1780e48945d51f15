"""Arms of a training comparison: one store, several recipes and seeds, one table.

Every arm and seed is fitted in a folder of its own and resumed there; finished ones are not done
again. All are judged on the same greedy answers of the target, which are generated once: tau
depends on the drafter, the answers do not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.base.disk import write_whole
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.evaluate.walk import ChainFigures, GreedyAnswer, draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.compare.costs import answer_tokens, flops
from sgl_entropy.train.compare.file import Arm, Comparison, Job
from sgl_entropy.train.compare.side_by_side import fit_side_by_side
from sgl_entropy.train.fit.export import export_drafter
from sgl_entropy.train.machine.processes import Group, device_name, device_of
from sgl_entropy.train.samples import open_store
from sgl_entropy.train.samples.store import Samples
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]
_RESULT = "result.json"


def run(
    work: Workspace, comparison: Comparison, workers: int, report: Report
) -> list[dict[str, Any]]:
    """Fit what is not fitted, judge what is not judged; one row a job, in the jobs' order.

    Args:
        work: the target and the folder that all arms share.
        workers: processes that fit at once, each with one thread, on the GPU where there is one.

    Returns:
        Rows with ``arm``, ``seed``, ``algorithm``, ``layers``, ``fit`` (seconds, rows, flops) and
        ``prompts``: [group, tokens, cycles] of each evaluated prompt.
    """
    jobs = comparison.jobs()
    judge = _Judge(work, comparison, report)  # which asks every arm for its layers
    todo = [job for job in jobs if not job.fitted]
    _make_vocabularies(work, todo)
    _fit_all(todo, workers, report)
    return [judge.row(job) for job in jobs]


def _make_vocabularies(shared: Workspace, todo: Sequence[Job]) -> None:
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


def fit_job(job: Job, report: Report = print) -> None:
    """Fit and export one job; its folder's ``drafter`` appears only when it is whole."""
    torch.set_num_threads(1)
    group = Group(device=torch.device(device_of(0)))
    work = Workspace.of(job.settings)
    fit = pipeline.make_fit(work, job.arm.algorithm, job.folder, group)
    fit.run(lambda line: report(f"{job.name}: {line}"))
    done = {
        "recipe": job.recipe,
        "answer_tokens": answer_tokens(fit),
        "seconds": round(fit.seconds, 1),
        "device": device_name(group.device),
        "epochs": fit.costs,
        "flops": flops(fit),
    }
    write_whole(job.folder / "fit.json", json.dumps(done) + "\n")
    export_drafter(fit.drafter, fit.side.tap_scale, job.folder / "drafter")
    fit.checkpoints.forget_previous()


def _fit_all(todo: Sequence[Job], workers: int, report: Report) -> None:
    if not todo:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    if workers == 1 or len(todo) == 1:
        for job in todo:
            fit_job(job, report)
        return
    report(f"{len(todo)} drafters to fit, {workers} at once")
    fit_side_by_side(_fit_quietly, todo, workers, report)


def _fit_quietly(job: Job) -> None:
    fit_job(job, lambda line: print(line, file=sys.stderr, flush=True))


class _Judge:
    """tau of jobs on answers that are generated when the first one needs them."""

    def __init__(self, work: Workspace, comparison: Comparison, report: Report) -> None:
        self.report = report
        self.work = work
        self.given = comparison.arms[0].settings
        self.layers = sorted({layer for arm in comparison.arms for layer in _layers(work, arm)})
        self._answers: list[tuple[str, GreedyAnswer]] = []
        self._embedding = torch.zeros(0)
        self._digest = ""

    def row(self, job: Job) -> dict[str, Any]:
        path = job.folder / _RESULT
        asked: dict[str, Any] = {
            "benchmarks": Path(self.given.evaluate.benchmarks).name,
            "prompts": self.given.evaluate.prompts,
            "depth": self.given.evaluate.depth,
            "max_new_tokens": self.given.evaluate.max_new_tokens,
            "dtype": self.given.evaluate.dtype,
        }
        held = _read_row(path)
        # Records did not always hold all of it: what they do not say is taken to be the same.
        if held is None or "sha256" in held["evaluate"]:
            asked["sha256"] = self._sha256()
        if held is not None and {**asked, **held["evaluate"]} == asked:
            return {**held, "curve": job.arm.curve, "layers": _layers(self.work, job.arm)}
        asked["sha256"] = self._sha256()
        self._generate()
        drafter = load_drafter(job.folder / "drafter").to(self._embedding.device)
        columns = [self.layers.index(layer) for layer in drafter.config.target_layer_ids or ()]
        prompts: list[tuple[str, int, int]] = []
        whole = ChainFigures(0, 0, (0,) * asked["depth"])
        for group, answer in self._answers:
            wide = answer.features.view(len(answer.features), len(self.layers), -1)
            tapped = replace(answer, features=wide[:, columns].flatten(1))
            found = draft_answer(drafter, self._embedding, tapped, asked["depth"])[0]
            prompts.append((group, found.tokens, found.cycles))
            whole += found
        cost = json.loads((job.folder / "fit.json").read_text(encoding="utf-8"))
        del cost["recipe"]  # it may name folders of this machine
        out = {
            "arm": job.arm.name,
            "curve": job.arm.curve,
            "seed": job.seed,
            "algorithm": job.arm.algorithm,
            "layers": _layers(self.work, job.arm),
            "evaluate": asked,
            "fit": cost,
            "prompts": prompts,
            "accepted_at": whole.accepted_at,
        }
        write_whole(path, json.dumps(out) + "\n")
        self.report(f"{job.name}: pooled tau {whole.tau:.3f}")
        return out

    def _sha256(self) -> str:
        """Of the prompts: they may be others under the same name."""
        self._digest = self._digest or pipeline.benchmark_texts(self.given.evaluate)[1]
        return self._digest

    def _generate(self) -> None:
        if self._answers:
            return
        given, folder = self.given.evaluate, self.work.target
        target = PlainTarget.from_folder(folder, getattr(torch, given.dtype), device_of(0))
        prompts = pipeline.benchmark_prompts(self.work)
        flat = [(group, one) for group, held in prompts.items() for one in held]
        answers = greedy_answers(
            target, [p for _, p in flat], given.max_new_tokens, self.layers, report=self.report
        )
        self._answers = [(group, a) for (group, _), a in zip(flat, answers, strict=True)]
        self._embedding = target.embedding


def _layers(shared: Workspace, arm: Arm) -> list[int]:
    """The layers that its drafters tap."""
    work = replace(shared, settings=arm.settings)
    return list(pipeline.drafter_config(work, arm.algorithm).target_layer_ids or ())


def _read_row(path: Path) -> dict[str, Any] | None:
    """None where there is none, or one that was cut short."""
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return held
