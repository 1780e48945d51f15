"""Where a training keeps its files, and which layers of its target it needs."""

from __future__ import annotations

import json
from pathlib import Path

from sgl_entropy.target import cache_dir, ensure_small_target
from sgl_entropy.train.settings import TrainSettings


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


def stored_layers(settings: TrainSettings, count: int) -> tuple[int, ...]:
    """The layers that are wanted of a target of ``count``.

    Raises:
        ValueError: it has not all of them.
    """
    layers = tuple(sorted({*settings.drafter.tap_layers(count), *settings.generate.extra_layers}))
    missing = [layer for layer in layers if not 0 <= layer < count]
    if missing:
        raise ValueError(
            f"the target's layers are 0 to {count - 1}, and {missing} are wanted: see "
            "drafter.edsd_layers, drafter.eagle3_layers, drafter.select_report and "
            "generate.extra_layers"
        )
    return layers


def wanted_layers(settings: TrainSettings) -> tuple[int, ...]:
    """``stored_layers`` of the settings' target."""
    model = json.loads((target_folder(settings) / "config.json").read_text(encoding="utf-8"))
    return stored_layers(settings, int(model["num_hidden_layers"]))
