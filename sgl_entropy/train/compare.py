"""Arms of a training comparison: one store, several recipes and seeds, one table.

A comparison file (TOML or JSON) names a base settings file and the arms, each a drafter kind and
what it changes. Every arm and seed is fitted in a folder of its own and resumed there; finished
ones are not done again. All are judged on the same greedy answers of the target, which are
generated once: tau depends on the drafter, the answers do not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.drafter.evaluate import Answer, draft_answer, greedy_answers
from sgl_entropy.drafter.model import load_drafter
from sgl_entropy.drafter.plain_target import PlainTarget
from sgl_entropy.train import data, pipeline
from sgl_entropy.train.export import export_drafter
from sgl_entropy.train.fit_costs import answer_tokens, flops
from sgl_entropy.train.group import Group, device_name, device_of
from sgl_entropy.train.settings import TrainSettings, load_settings, read_settings
from sgl_entropy.train.store import Samples

Report = Callable[[str], None]
_RESULT = "result.json"


@dataclass(frozen=True)
class Arm:
    """One recipe: its drafter's kind and its settings (seed not yet set); ``curve``: of which
    learning curve it is a point."""

    name: str
    algorithm: Algorithm
    settings: TrainSettings
    curve: str = ""


@dataclass(frozen=True)
class Comparison:
    """What is compared: ``arms``, each with every seed, against the arm ``baseline``."""

    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]

    def part(self, arms: Sequence[str], seeds: Sequence[int]) -> Comparison:
        """Some arms and seeds alone; none named = all. The baseline stays.

        Raises:
            ValueError: an arm that is not among them.
        """
        names = [arm.name for arm in self.arms]
        if wrong := sorted(set(arms) - set(names)):
            raise ValueError(f"--arms: there is no {', '.join(wrong)}, but {', '.join(names)}")
        wanted = {*(arms or names), self.baseline}
        return replace(
            self,
            arms=tuple(arm for arm in self.arms if arm.name in wanted),
            seeds=tuple(dict.fromkeys(seeds)) or self.seeds,
        )

    def jobs(self) -> list[Job]:
        """Seed by seed, so that an interrupted comparison has whole seeds first."""
        return [Job(arm, seed) for seed in self.seeds for arm in self.arms]


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def settings(self) -> TrainSettings:
        return replace(self.arm.settings, fit=replace(self.arm.settings.fit, seed=self.seed))

    @property
    def folder(self) -> Path:
        work = data.work_folder(self.arm.settings)
        return work / "compare" / self.arm.name / f"seed-{self.seed}"

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides the drafter, as JSON holds it."""
        given = self.settings
        parts = {"drafter": asdict(given.drafter), "fit": asdict(given.fit)}
        held: dict[str, Any] = json.loads(json.dumps({"algorithm": self.arm.algorithm, **parts}))
        return held

    @property
    def fitted(self) -> bool:
        """Whether its drafter is there.

        Raises:
            ValueError: one is, but of another recipe: the arm was changed since.
        """
        if not (self.folder / "drafter" / "config.json").is_file():
            return False
        made = json.loads((self.folder / "fit.json").read_text(encoding="utf-8"))["recipe"]
        if made != self.recipe:
            raise ValueError(
                f"{self.folder} holds a drafter of other settings: the arm {self.arm.name} was "
                f"changed since; remove the folder or give the arm another name"
            )
        return True

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison file.

    Keys: ``base`` (a settings file, relative to this one; optional), ``set`` (a list of
    SECTION.KEY=VALUE for all arms; optional), ``baseline`` (an arm's name; default: the first),
    ``seeds`` (default [0]) and ``arms``, a list of tables with ``name``, ``algorithm``, ``set``
    (optional) and ``curve`` (arms of the same curve differ in ``fit.answer_tokens`` alone;
    optional).

    Args:
        overrides: SECTION.KEY=VALUE for every arm, after the file's and before its own.

    Raises:
        ValueError: not readable, unknown keys, arms without name or of the same name, settings
            that do not fit; names the arm.
    """
    raw = read_settings(path)
    unknown = sorted(set(raw) - {"base", "set", "baseline", "seeds", "arms"})
    seeds = raw.get("seeds", [0])
    rows = raw.get("arms")
    wrong = [f"unknown key {key}" for key in unknown]
    if not isinstance(rows, list) or not rows:
        wrong.append("arms must be a list of tables, one an arm")
        rows = []
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int for s in seeds):
        wrong.append(f"seeds must be a list of integers, found {seeds!r}")
    shared = raw.get("set", [])
    if not isinstance(shared, list) or any(not isinstance(one, str) for one in shared):
        wrong.append(f"set must be a list of strings, found {shared!r}")
    if wrong:
        raise ValueError("\n".join(f"{path}: {line}" for line in wrong))
    base = path.parent / raw["base"] if "base" in raw else None
    arms = tuple(_arm(path, base, row, [*shared, *overrides]) for row in rows)
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two arms have the same name")
    baseline = raw.get("baseline", names[0])
    if baseline not in names:
        raise ValueError(f"{path}: the baseline {baseline!r} is none of the arms {names}")
    if len({data.work_folder(arm.settings) for arm in arms}) > 1:
        raise ValueError(f"{path}: the arms must share one work folder: they share its store")
    _check_curves(path, arms)
    return Comparison(arms, baseline, tuple(dict.fromkeys(seeds)))


def _check_curves(path: Path, arms: Sequence[Arm]) -> None:
    """
    Raises:
        ValueError: arms of one curve that differ in more than their tokens.
    """
    recipes: dict[str, tuple[Algorithm, TrainSettings]] = {}
    for arm in arms:
        if arm.curve:
            alike = replace(arm.settings, fit=replace(arm.settings.fit, answer_tokens=0))
            if recipes.setdefault(arm.curve, (arm.algorithm, alike)) != (arm.algorithm, alike):
                raise ValueError(
                    f"{path}: the arms of curve {arm.curve} differ in more than fit.answer_tokens"
                )


def _arm(path: Path, base: Path | None, row: Any, overrides: Sequence[str]) -> Arm:
    if not isinstance(row, dict) or not {"name", "algorithm"} <= set(row) <= {
        *("name", "algorithm", "set", "curve")
    }:
        raise ValueError(
            f"{path}: an arm has name, algorithm and perhaps set and curve, found {row!r}"
        )
    name, algorithm, own = row["name"], row["algorithm"], row.get("set", [])
    curve = row.get("curve", "")
    if not isinstance(curve, str):
        raise ValueError(f"{path}: arm {name}: curve must be a name, found {curve!r}")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{path}: an arm's name is of letters, digits, - and _, found {name!r}")
    if algorithm not in get_args(Algorithm):
        raise ValueError(f"{path}: arm {name}: algorithm must be one of {get_args(Algorithm)}")
    try:
        return Arm(name, algorithm, load_settings(base, [*overrides, *own]), curve)
    except ValueError as error:
        raise ValueError(f"{path}: arm {name}: {error}") from None


def run(comparison: Comparison, workers: int, report: Report) -> list[dict[str, Any]]:
    """Fit what is not fitted, judge what is not judged; one row a job, in the jobs' order.

    Args:
        workers: processes that fit at once, each with one thread, on the GPU where there is one.

    Returns:
        Rows with ``arm``, ``seed``, ``algorithm``, ``fit`` (seconds, rows, flops) and
        ``prompts``: [group, tokens, cycles] of each evaluated prompt.
    """
    jobs = comparison.jobs()
    todo = [job for job in jobs if not job.fitted]
    _make_vocabularies(todo)
    _fit_all(todo, workers, report)
    judge = _Judge(comparison, report)
    return [judge.row(job) for job in jobs]


def _make_vocabularies(todo: Sequence[Job]) -> None:
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
            store = store or data.open_store(given)
            pipeline.make_vocabulary(given, job.arm.algorithm, store)
            done.add(key)


def fit_job(job: Job, report: Report = print) -> None:
    """Fit and export one job; its folder's ``drafter`` appears only when it is whole."""
    torch.set_num_threads(1)
    group = Group(device=torch.device(device_of(0)))
    fit = pipeline.make_fit(job.settings, job.arm.algorithm, job.folder, group)
    fit.run(lambda line: report(f"{job.name}: {line}"))
    done = {
        "recipe": job.recipe,
        "answer_tokens": answer_tokens(fit),
        "seconds": round(fit.seconds, 1),
        "device": device_name(group.device),
        "epochs": fit.costs,
        "flops": flops(fit),
    }
    (job.folder / "fit.json").write_text(json.dumps(done) + "\n", encoding="utf-8")
    partial = job.folder / "drafter.partial"
    export_drafter(fit.drafter, fit.side.tap_scale, partial)
    partial.rename(job.folder / "drafter")


def _fit_all(todo: Sequence[Job], workers: int, report: Report) -> None:
    if not todo:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    if workers == 1 or len(todo) == 1:
        for job in todo:
            fit_job(job, report)
        return
    report(f"{len(todo)} drafters to fit, {workers} at once")
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(todo)), maxtasksperchild=1) as pool:
        for done, name in enumerate(pool.imap_unordered(_fit_quietly, todo), 1):
            report(f"{name}: fitted ({done} of {len(todo)})")


def _fit_quietly(job: Job) -> str:
    fit_job(job, lambda line: print(line, flush=True))
    return job.name


class _Judge:
    """tau of jobs on answers that are generated when the first one needs them."""

    def __init__(self, comparison: Comparison, report: Report) -> None:
        self.report = report
        self.given = comparison.arms[0].settings
        self.layers = sorted(
            {
                layer
                for arm in comparison.arms
                for layer in pipeline.drafter_config(arm.settings, arm.algorithm).target_layer_ids
                or ()
            }
        )
        self._answers: list[tuple[str, Answer]] = []
        self._embedding = torch.zeros(0)

    def row(self, job: Job) -> dict[str, Any]:
        path = job.folder / _RESULT
        asked: dict[str, Any] = {
            "benchmarks": Path(self.given.evaluate.benchmarks).name,
            "prompts": self.given.evaluate.prompts,
            "depth": self.given.evaluate.depth,
            "max_new_tokens": self.given.evaluate.max_new_tokens,
        }
        if path.is_file():
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if held["evaluate"] == asked:
                return {**held, "curve": job.arm.curve}
        self._generate()
        drafter = load_drafter(job.folder / "drafter").to(self._embedding.device)
        columns = [self.layers.index(layer) for layer in drafter.config.target_layer_ids or ()]
        prompts: list[tuple[str, int, int]] = []
        for group, answer in self._answers:
            wide = answer.features.view(len(answer.features), len(self.layers), -1)
            tapped = replace(answer, features=wide[:, columns].flatten(1))
            found = draft_answer(drafter, self._embedding, tapped, asked["depth"])[0]
            prompts.append((group, found.tokens, found.cycles))
        cost = json.loads((job.folder / "fit.json").read_text(encoding="utf-8"))
        del cost["recipe"]  # it may name folders of this machine
        out = {
            "arm": job.arm.name,
            "curve": job.arm.curve,
            "seed": job.seed,
            "algorithm": job.arm.algorithm,
            "evaluate": asked,
            "fit": cost,
            "prompts": prompts,
        }
        path.write_text(json.dumps(out) + "\n", encoding="utf-8")
        tau = sum(p[1] for p in prompts) / max(1, sum(p[2] for p in prompts))
        self.report(f"{job.name}: pooled tau {tau:.3f}")
        return out

    def _generate(self) -> None:
        if self._answers:
            return
        given, folder = self.given.evaluate, data.target_folder(self.given)
        target = PlainTarget.from_folder(folder, getattr(torch, given.dtype), device_of(0))
        prompts = pipeline.benchmark_prompts(self.given)
        flat = [(group, one) for group, held in prompts.items() for one in held]
        answers = greedy_answers(
            target, [p for _, p in flat], given.max_new_tokens, self.layers, report=self.report
        )
        self._answers = [(group, a) for (group, _), a in zip(flat, answers, strict=True)]
        self._embedding = target.embedding
