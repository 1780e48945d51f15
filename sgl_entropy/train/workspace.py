"""Where a training keeps its files, and which layers of its target it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sgl_entropy.drafter.config import Algorithm, highest_layer_id
from sgl_entropy.target.fingerprint import refuse_other_report
from sgl_entropy.target.smollm2 import cache_dir, ensure_small_target
from sgl_entropy.train.settings.file import TrainSettings


def target_folder(settings: TrainSettings) -> Path:
    """The target to draft for; the small real one is converted on first use."""
    return Path(settings.target).expanduser() if settings.target else ensure_small_target()


def work_folder(settings: TrainSettings) -> Path:
    """Where this training keeps its files."""
    if settings.work:
        return Path(settings.work).expanduser()
    name = Path(settings.target).name if settings.target else "smollm2-135m"
    return cache_dir() / f"train-{name}"


def answers_file(settings: TrainSettings) -> Path:
    """Where ``prepare`` leaves answers."""
    return work_folder(settings) / "answers.jsonl"


def fit_folder(settings: TrainSettings, algorithm: Algorithm) -> Path:
    """Where ``fit`` keeps the checkpoints and the log of a drafter."""
    return work_folder(settings) / algorithm.lower()


def stored_layers(settings: TrainSettings, count: int) -> tuple[int, ...]:
    """The layers that are wanted of a target of ``count``.

    Raises:
        ValueError: it has not all of them, no server can give a drafter one that it taps, or
            they are of a select report of another target.
    """
    tapped, extra = settings.drafter.tap_layers(count), settings.generate.extra_layers
    _refuse_other_report(settings)
    _refuse_out_of_reach(tapped, count)
    missing = sorted(layer for layer in {*extra} if layer >= count)
    if missing:
        raise ValueError(
            f"the target's layers are 0 to {count - 1}, generate.extra_layers names {missing}"
        )
    return tuple(sorted({*tapped, *extra}))


def served_layers(settings: TrainSettings, algorithm: Algorithm, count: int) -> tuple[int, ...]:
    """The layers that a drafter taps of a target of ``count``: those that ``drafter check`` passes.

    Raises:
        ValueError: no server can give it one of them, SGLang's default ones do not rise, or they
            are of a select report of another target.
    """
    given = settings.drafter
    layers = given.layers if algorithm == "EDSD" else given.eagle3_taps(count)
    if algorithm == "EDSD":
        _refuse_other_report(settings)
    _refuse_out_of_reach(layers, count)
    if list(layers) != sorted(set(layers)):  # what is set rises
        raise ValueError(
            f"the layers that EAGLE-3 taps must rise without repeats, found {list(layers)}, "
            f"SGLang's default on a target of {count}: name others in drafter.eagle3_layers"
        )
    return layers


def _refuse_other_report(settings: TrainSettings) -> None:
    if settings.drafter.select_report:
        report = Path(settings.drafter.select_report).expanduser()
        refuse_other_report(report, target_folder(settings))


def _refuse_out_of_reach(layers: Sequence[int], count: int) -> None:
    highest = highest_layer_id(count)
    beyond = sorted(layer for layer in {*layers} if not 0 <= layer <= highest)
    if beyond:
        raise ValueError(
            f"drafters of a target of {count} layers can tap 0 to {highest}, {beyond} are wanted: "
            "drafter.edsd_layers, drafter.eagle3_layers or drafter.select_report names them "
            "(SGLang captures a layer's output before the next one, and the last has none)"
        )


def wanted_layers(settings: TrainSettings) -> tuple[int, ...]:
    """``stored_layers`` of the settings' target."""
    model = json.loads((target_folder(settings) / "config.json").read_text(encoding="utf-8"))
    return stored_layers(settings, int(model["num_hidden_layers"]))
