"""Fields that identify a run, and settings that may change while it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.settings.fit import FitSettings

# Where the starting drafter or the samples lie does not matter; what they hold does.
_PASSING = ("checkpoint_seconds", "start", "skip_damaged", "online", "hold_gb")
# What later steps alone depend on: neither batches nor weights nor the optimizer's state.
CHANGEABLE = ("learning_rate", "warmup", "final_rate", "clip")
Identity = dict[str, Any]


def identity_of(
    config: DrafterConfig, settings: FitSettings, learned: Sequence[Entry], vocabulary: Tensor
) -> Identity:
    """All that decides the weights of a training, as its checkpoints hold it."""
    return {
        "drafter": config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size},
        "settings": {k: v for k, v in asdict(settings).items() if k not in _PASSING},
        "start": _digest(Path(settings.start).expanduser()) if settings.start else "",
        "samples": [len(learned), sum(e.answer_rows for e in learned)],
        "vocabulary": hashlib.sha256(vocabulary.numpy().tobytes()).hexdigest(),
    }


def accepted_changes(
    held: Identity, wanted: Identity, checkpoint: Path, accept: bool
) -> dict[str, list[Any]]:
    """What a run changes of the training that ``checkpoint`` holds: key -> [before, now].

    Args:
        held, wanted: the checkpoint's and the run's.
        accept: whether changes of ``CHANGEABLE`` settings are asked for.

    Raises:
        ValueError: anything else differs, or ``accept`` is not given; names all with both values.
    """
    found = _differences(held, wanted)
    allowed = {f"fit.{key}" for key in CHANGEABLE}
    if not found or (accept and set(found) <= allowed):
        return found
    lines = [f"  {key}: was {was!r}, is {now!r}" for key, (was, now) in found.items()]
    if set(found) <= allowed:
        help_line = "set it back, or pass --accept-changes to go on with it from this step"
    else:
        help_line = "set it back, or remove the folder's checkpoints, or train in another folder"
    raise ValueError("\n".join([f"{checkpoint} is of another run:", *lines, help_line]))


def _differences(held: Identity, wanted: Identity) -> dict[str, list[Any]]:
    # A setting that came after the checkpoint was, without being set, what it is by default.
    settings = asdict(FitSettings()) | held["settings"]
    settings = {key: settings[key] for key in {*wanted["settings"], *held["settings"]}}
    found = _compared("fit.", settings, wanted["settings"])
    found |= _compared("drafter.", held["drafter"], wanted["drafter"])
    names = {
        "start": "the weights of fit.start (sha256)",
        "samples": "the samples to learn from (count, rows)",
        "vocabulary": "the draft vocabulary (sha256)",
    }
    parts = [{name: one[key] for key, name in names.items()} for one in (held, wanted)]
    return found | _compared("", *parts)


def _compared(
    prefix: str, held: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, list[Any]]:
    return {
        f"{prefix}{key}": [held.get(key), wanted.get(key)]
        for key in sorted({*held, *wanted})
        if held.get(key) != wanted.get(key)
    }


def _digest(folder: Path) -> str:
    """sha256 of a drafter's weights."""
    return "-".join(file_sha256(file) for file in sorted(folder.glob("*.safetensors")))
