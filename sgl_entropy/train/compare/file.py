"""What a training comparison compares: a comparison file's arms, and their jobs.

A comparison file (TOML or JSON) names a base settings file and the arms, each a drafter kind and
what it changes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from sgl_entropy.base.table_file import read_table
from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.train.settings.drafter import DrafterSettings
from sgl_entropy.train.settings.file import TrainSettings, load_settings
from sgl_entropy.train.settings.fit import FitSettings
from sgl_entropy.train.workspace import work_folder


@dataclass(frozen=True)
class Recipe:
    """An arm of a comparison: its drafter's kind and its settings (seed not yet set); ``curve``:
    of which learning curve it is a point."""

    name: str
    algorithm: Algorithm
    settings: TrainSettings
    curve: str = ""


@dataclass(frozen=True)
class Comparison:
    """What is compared: ``recipes``, each with every seed, against that of the name
    ``baseline``."""

    recipes: tuple[Recipe, ...]
    baseline: str
    seeds: tuple[int, ...]

    def part(self, arms: Sequence[str], seeds: Sequence[int]) -> Comparison:
        """Some arms and seeds alone; none named = all. The baseline stays.

        Raises:
            ValueError: an arm that is not among them.
        """
        names = [recipe.name for recipe in self.recipes]
        if wrong := sorted(set(arms) - set(names)):
            raise ValueError(f"--arms: there is no {', '.join(wrong)}, but {', '.join(names)}")
        wanted = {*(arms or names), self.baseline}
        return replace(
            self,
            recipes=tuple(recipe for recipe in self.recipes if recipe.name in wanted),
            seeds=tuple(dict.fromkeys(seeds)) or self.seeds,
        )

    def jobs(self) -> list[FitJob]:
        """Seed by seed, so that an interrupted comparison has whole seeds first."""
        return [FitJob(recipe, seed) for seed in self.seeds for recipe in self.recipes]


@dataclass(frozen=True)
class FitJob:
    """One recipe with one seed."""

    recipe: Recipe
    seed: int

    @property
    def settings(self) -> TrainSettings:
        return replace(self.recipe.settings, fit=replace(self.recipe.settings.fit, seed=self.seed))

    @property
    def folder(self) -> Path:
        work = work_folder(self.recipe.settings)
        return work / "compare" / self.recipe.name / f"seed-{self.seed}"

    @property
    def decides(self) -> dict[str, Any]:
        """All that decides the drafter, as ``recipe`` in fit.json holds it."""
        given = self.settings
        parts = {"drafter": asdict(given.drafter), "fit": asdict(given.fit)}
        known = {"algorithm": self.recipe.algorithm, **parts}
        read: dict[str, Any] = json.loads(json.dumps(known))
        return read

    @property
    def fitted(self) -> bool:
        """Whether its drafter is there.

        Raises:
            ValueError: one is, but of another recipe: the arm was changed since.
        """
        if not (self.folder / "drafter" / "config.json").is_file():
            return False
        made = json.loads((self.folder / "fit.json").read_text(encoding="utf-8"))["recipe"]
        # Settings that came later are not in an old file: it was made with their defaults.
        for name, part in (("drafter", DrafterSettings()), ("fit", FitSettings())):
            made[name] = json.loads(json.dumps(asdict(part))) | made[name]
        if made != self.decides:
            raise ValueError(
                f"{self.folder} holds a drafter of other settings: the arm {self.recipe.name} was "
                f"changed since; remove the folder or give the arm another name"
            )
        return True

    @property
    def name(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


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
    raw = read_table(path)
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
    arms = tuple(_recipe(path, base, row, [*shared, *overrides]) for row in rows)
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two arms have the same name")
    baseline = raw.get("baseline", names[0])
    if baseline not in names:
        raise ValueError(f"{path}: the baseline {baseline!r} is none of the arms {names}")
    if len({work_folder(arm.settings) for arm in arms}) > 1:
        raise ValueError(f"{path}: the arms must share one work folder: they share its store")
    _check_curves(path, arms)
    return Comparison(arms, baseline, tuple(dict.fromkeys(seeds)))


def _check_curves(path: Path, arms: Sequence[Recipe]) -> None:
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


def _recipe(path: Path, base: Path | None, row: Any, overrides: Sequence[str]) -> Recipe:
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
        return Recipe(name, algorithm, load_settings(base, [*overrides, *own]), curve)
    except ValueError as error:
        raise ValueError(f"{path}: arm {name}: {error}") from None
