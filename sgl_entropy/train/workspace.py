"""Where a training keeps its files, and what it knows of its target: read once, passed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgl_entropy.base.cache import cache_dir
from sgl_entropy.drafter.config import Algorithm, highest_layer_id
from sgl_entropy.target.config import read_target_config
from sgl_entropy.target.fingerprint import refuse_other_report
from sgl_entropy.target.smollm2 import ensure_small_target
from sgl_entropy.train.settings.file import TrainSettings


def work_folder(settings: TrainSettings) -> Path:
    """The folder for all files of a training; the target need not be there."""
    if settings.work:
        return Path(settings.work).expanduser()
    name = Path(settings.target).name if settings.target else "smollm2-135m"
    return cache_dir() / f"train-{name}"


def fit_folder(settings: TrainSettings, algorithm: Algorithm) -> Path:
    """The folder for the checkpoints and the log of one drafter."""
    return work_folder(settings) / algorithm.lower()


@dataclass(frozen=True)
class Workspace:
    """A training's settings, target and files. ``Workspace.of`` builds it; with other settings for
    the same target and folder it is ``dataclasses.replace(work, settings=...)``.

    Attributes:
        settings: what the user asked for.
        target: the Hugging Face folder of the model to draft for.
        model: the target's ``config.json``.
        folder: prompts, answers, feature store, checkpoints and logs lie here.
    """

    settings: TrainSettings
    target: Path
    model: Mapping[str, Any]
    folder: Path

    @classmethod
    def of(cls, settings: TrainSettings) -> Workspace:
        """Find the target and read its config; the small real target is converted on first use.

        Raises:
            ValueError: the target has no readable ``config.json``.
        """
        target = Path(settings.target).expanduser() if settings.target else ensure_small_target()
        model = read_target_config(target)
        return cls(settings, target, model, work_folder(settings))

    @property
    def prompts_file(self) -> Path:
        """The prompt file."""
        return self.folder / "prompts.jsonl"

    @property
    def answers_file(self) -> Path:
        """The file in which ``prepare`` leaves answers."""
        return self.folder / "answers.jsonl"

    @property
    def store_folder(self) -> Path:
        """The feature store's folder."""
        return self.folder / "store"

    @property
    def vocabulary_file(self) -> Path:
        """The file that keeps the draft vocabulary."""
        return self.folder / f"vocabulary-{self.settings.drafter.draft_vocab_size}.json"

    @property
    def benchmarks_file(self) -> Path:
        """The file that keeps the evaluation prompts' token ids."""
        return self.folder / "benchmarks.json"

    @property
    def vocab_size(self) -> int:
        return int(self.model["vocab_size"])

    @property
    def max_positions(self) -> int:
        """The target's longest context, in tokens."""
        return int(self.model["max_position_embeddings"])

    @property
    def num_layers(self) -> int:
        return int(self.model["num_hidden_layers"])

    @cached_property
    def stored_layers(self) -> tuple[int, ...]:
        """The target's layers whose outputs the feature store keeps.

        Raises:
            ValueError: the target lacks one, no server can give one to a drafter that taps it, or
                they come from a select report of another target.
        """
        given = self.settings
        tapped, extra = given.drafter.tap_layers(self.num_layers), given.generate.extra_layers
        self._refuse_other_report()
        self._refuse_out_of_reach(tapped)
        missing = sorted(layer for layer in {*extra} if layer >= self.num_layers)
        if missing:
            raise ValueError(
                f"the target's layers are 0 to {self.num_layers - 1}, generate.extra_layers names "
                f"{missing}"
            )
        return tuple(sorted({*tapped, *extra}))

    def check_layers(self) -> None:
        """Refuse layers that cannot be stored, before any work is done.

        Raises:
            ValueError: as ``stored_layers``.
        """
        _ = self.stored_layers

    def served_layers(self, algorithm: Algorithm) -> tuple[int, ...]:
        """The layers that a drafter taps; ``drafter check`` passes them.

        Raises:
            ValueError: no server can give it one of them, SGLang's default ones do not rise, or
                they come from a select report of another target.
        """
        given = self.settings.drafter
        edsd = algorithm == "EDSD"
        layers = given.layers if edsd else given.eagle3_taps(self.num_layers)
        if edsd:
            self._refuse_other_report()
        self._refuse_out_of_reach(layers)
        if list(layers) != sorted(set(layers)):  # layers that were set do rise
            raise ValueError(
                f"the layers that EAGLE-3 taps must rise without repeats, found {list(layers)}, "
                f"SGLang's default on a target of {self.num_layers}: name others in "
                "drafter.eagle3_layers"
            )
        return layers

    def _refuse_other_report(self) -> None:
        report = self.settings.drafter.select_report
        if report:
            refuse_other_report(Path(report).expanduser(), self.target)

    def _refuse_out_of_reach(self, layers: Sequence[int]) -> None:
        highest = highest_layer_id(self.num_layers)
        beyond = sorted(layer for layer in {*layers} if not 0 <= layer <= highest)
        if beyond:
            raise ValueError(
                f"drafters of a target of {self.num_layers} layers can tap 0 to {highest}, "
                f"{beyond} are wanted: drafter.edsd_layers, drafter.eagle3_layers or "
                "drafter.select_report names them (SGLang captures a layer's output before the "
                "next one, and the last has none)"
            )
