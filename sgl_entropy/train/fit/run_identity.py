"""Fields that identify a run, and settings that may change while it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sgl_entropy.base.disk import file_sha256
from sgl_entropy.drafter.config import DrafterConfig
from sgl_entropy.train.samples.store import Entry
from sgl_entropy.train.settings.fit import FitSettings

# Where the starting drafter and the samples lie does not matter; what they hold does.
_PASSING = ("checkpoint_seconds", "start", "skip_damaged", "online", "hold_gb")
# What later steps alone depend on: neither batches nor weights nor the optimizer's state.
CHANGEABLE = ("learning_rate", "warmup", "final_rate", "clip")


@dataclass(frozen=True)
class Change:
    """Settings that became others while a training went on: from optimizer step ``step`` on, key
    -> [before, now]."""

    step: int
    changed: dict[str, list[Any]]


@dataclass(frozen=True)
class RunIdentity:
    """What decides the weights of a training.

    Attributes:
        drafter: the drafter's config, as its config.json has it, and ``fuse_size``.
        settings: of the fit, by name, without those in ``_PASSING``.
        start: sha256 of the drafter to start from; empty = none.
        samples: how many are learned from, and their answers' rows.
        vocabulary: sha256 of the draft vocabulary.
    """

    drafter: dict[str, Any]
    settings: dict[str, Any]
    start: str
    samples: list[int]
    vocabulary: str

    @classmethod
    def of(
        cls,
        config: DrafterConfig,
        settings: FitSettings,
        learned: Sequence[Entry],
        vocabulary: Tensor,
    ) -> RunIdentity:
        """The identity of the training of ``config`` on the samples ``learned``."""
        return cls(
            config.to_dict(torch_dtype="float32") | {"fuse_size": config.fuse_size},
            {key: value for key, value in asdict(settings).items() if key not in _PASSING},
            _digest(Path(settings.start).expanduser()) if settings.start else "",
            [len(learned), sum(entry.answer_rows for entry in learned)],
            hashlib.sha256(vocabulary.numpy().tobytes()).hexdigest(),
        )

    @property
    def config(self) -> DrafterConfig:
        """The drafter."""
        config = DrafterConfig.from_dict(self.drafter, source="the checkpoint")
        return replace(config, fuse_size=self.drafter["fuse_size"])

    @property
    def dtype(self) -> str:
        """Of the matmuls."""
        return str(self.settings["dtype"])


def accepted_changes(
    before: RunIdentity, now: RunIdentity, checkpoint: Path, accept: bool
) -> dict[str, list[Any]]:
    """What a run changes of the training that ``checkpoint`` holds: key -> [before, now].

    Args:
        accept: whether the user asks for changes of ``CHANGEABLE`` settings.

    Raises:
        ValueError: anything else differs, or ``accept`` is not given; names all with both values.
    """
    differ = _differences(before, now)
    allowed = {f"fit.{key}" for key in CHANGEABLE}
    if not differ or (accept and set(differ) <= allowed):
        return differ
    lines = [f"  {key}: was {was!r}, is {value!r}" for key, (was, value) in differ.items()]
    if set(differ) <= allowed:
        help_line = "set it back, or pass --accept-changes to go on with it from this step"
    else:
        help_line = "set it back, or remove the folder's checkpoints, or train in another folder"
    raise ValueError("\n".join([f"{checkpoint} is of another run:", *lines, help_line]))


def _differences(before: RunIdentity, now: RunIdentity) -> dict[str, list[Any]]:
    # A setting that came after the checkpoint had, without being set, its default.
    settings = asdict(FitSettings()) | before.settings
    settings = {key: settings[key] for key in {*now.settings, *before.settings}}
    differ = _compared("fit.", settings, now.settings)
    differ |= _compared("drafter.", before.drafter, now.drafter)
    names = {
        "start": "the weights of fit.start (sha256)",
        "samples": "the samples to learn from (count, rows)",
        "vocabulary": "the draft vocabulary (sha256)",
    }
    parts = [{name: getattr(one, key) for key, name in names.items()} for one in (before, now)]
    return differ | _compared("", *parts)


def _compared(
    prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, list[Any]]:
    return {
        f"{prefix}{key}": [before.get(key), now.get(key)]
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    }


def _digest(folder: Path) -> str:
    """sha256 of a drafter's weights."""
    return "-".join(file_sha256(file) for file in sorted(folder.glob("*.safetensors")))
