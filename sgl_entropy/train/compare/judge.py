"""tau of fitted drafters, all on the same greedy answers of the target, which are generated once:
tau depends on the drafter, the answers do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sgl_entropy.base.disk import write_whole
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.evaluate.walk import ChainFigures, GreedyAnswer, draft_answer, greedy_answers
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.compare.file import Comparison, FitJob, Recipe
from sgl_entropy.train.compare.records import FitRecord, JudgedBy, JudgedFit, read_judged
from sgl_entropy.train.machine.processes import device_of
from sgl_entropy.train.stages import drafter as pipeline
from sgl_entropy.train.workspace import Workspace


class Judge:
    """Judges the jobs of a comparison; answers are generated when the first job needs them."""

    def __init__(
        self, work: Workspace, comparison: Comparison, report: Callable[[str], None]
    ) -> None:
        self.report = report
        self.work = replace(work, settings=comparison.recipes[0].settings)
        self.layers = sorted({n for one in comparison.recipes for n in layers_of(work, one)})
        self._answers: list[tuple[str, GreedyAnswer]] = []
        self._embedding = torch.zeros(0)
        self._digest = ""

    def judged(self, job: FitJob) -> JudgedFit:
        """The job's record: the one in its folder, if it was judged by the same, else a new one."""
        path = job.folder / "result.json"
        given = self.work.settings.evaluate
        asked = JudgedBy(
            Path(given.benchmarks).name,
            given.prompts,
            given.depth,
            given.max_new_tokens,
            given.dtype,
        )
        known = read_judged(path)
        # What an old record does not say is assumed to be the same.
        if known is None or known.evaluate.sha256 is not None:
            asked = replace(asked, sha256=self._sha256())
        if known is not None and known.evaluate.agrees_with(asked):
            return replace(known, curve=job.recipe.curve, layers=layers_of(self.work, job.recipe))
        made = self._judge(job, replace(asked, sha256=self._sha256()))
        write_whole(path, json.dumps(made.to_json()) + "\n")
        return made

    def _judge(self, job: FitJob, asked: JudgedBy) -> JudgedFit:
        self._generate()
        drafter = load_drafter(job.folder / "drafter").to(self._embedding.device)
        columns = [self.layers.index(layer) for layer in drafter.config.target_layer_ids or ()]
        prompts: list[tuple[str, int, int]] = []
        whole = ChainFigures(0, 0, (0,) * asked.depth)
        for group, answer in self._answers:
            wide = answer.features.view(len(answer.features), len(self.layers), -1)
            tapped = replace(answer, features=wide[:, columns].flatten(1))
            figures = draft_answer(drafter, self._embedding, tapped, asked.depth)[0]
            prompts.append((group, figures.tokens, figures.cycles))
            whole += figures
        cost = json.loads((job.folder / "fit.json").read_text(encoding="utf-8"))
        del cost["recipe"]  # it may name folders of this machine
        self.report(f"{job.name}: pooled tau {whole.tau:.3f}")
        return JudgedFit(
            job.recipe.name,
            job.recipe.curve,
            job.seed,
            job.recipe.algorithm,
            layers_of(self.work, job.recipe),
            asked,
            FitRecord(**cost),
            prompts,
            list(whole.accepted_at),
        )

    def _sha256(self) -> str:
        """Of the prompts: they may be others under the same name."""
        self._digest = self._digest or pipeline.benchmark_texts(self.work.settings.evaluate)[1]
        return self._digest

    def _generate(self) -> None:
        if self._answers:
            return
        given, folder = self.work.settings.evaluate, self.work.target
        target = PlainTarget.from_folder(folder, getattr(torch, given.dtype), device_of(0))
        prompts = pipeline.benchmark_prompts(self.work)
        flat = [(group, one) for group, several in prompts.items() for one in several]
        answers = greedy_answers(
            target, [p for _, p in flat], given.max_new_tokens, self.layers, report=self.report
        )
        self._answers = [(group, a) for (group, _), a in zip(flat, answers, strict=True)]
        self._embedding = target.embedding


def layers_of(work: Workspace, recipe: Recipe) -> list[int]:
    """The layers that its drafters tap."""
    own = replace(work, settings=recipe.settings)
    return list(pipeline.drafter_config(own, recipe.algorithm).target_layer_ids or ())
