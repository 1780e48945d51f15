"""A training's samples: a store, opened and checked or about to be begun, or the target itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sgl_entropy.target.fingerprint import made_for, refuse_other_target
from sgl_entropy.target.plain import PlainTarget
from sgl_entropy.train.answers.file import read_answers
from sgl_entropy.train.machine.dtype import resolve_dtype
from sgl_entropy.train.machine.processes import device_of
from sgl_entropy.train.prompts.file import refuse_too_few
from sgl_entropy.train.samples.features import refuse_false
from sgl_entropy.train.samples.online import OnlineStore
from sgl_entropy.train.samples.store import (
    FORMAT,
    META,
    Samples,
    Store,
    made_with,
    read_meta,
    refuse_other_settings,
)
from sgl_entropy.train.settings.file import TrainSettings
from sgl_entropy.train.workspace import answers_file, target_folder, wanted_layers, work_folder

Report = Callable[[str], None]


def store_for(settings: TrainSettings, origin: dict[str, str]) -> tuple[Path, dict[str, Any]]:
    """The store's folder and the record that ``write_meta`` begins it with.

    Args:
        origin: what else decides its answers.

    Raises:
        ValueError: the folder holds a store of other settings or another target, or the target has
            not the layers that are wanted.
    """
    given = settings.generate
    target = target_folder(settings)
    model = json.loads((target / "config.json").read_text(encoding="utf-8"))
    folder = work_folder(settings) / "store"
    held = (folder / META).is_file()
    # A store keeps the name, and the fingerprint or none, that it was begun with.
    if held:
        named = refuse_other_target(read_meta(folder), target, folder, by_name=True)
    else:
        named = made_for(target)
    meta = {
        "format": FORMAT,
        **named,
        "tap_layers": list(wanted_layers(settings)),
        "hidden_size": int(model["hidden_size"]),
        "max_new_tokens": given.max_new_tokens,
        "dtype": resolve_dtype(given.dtype, made_with(folder)),
        **origin,
    }
    refuse_other_settings(folder, meta)
    return folder, meta


def open_store(
    settings: TrainSettings, report: Report = print, device: str | None = None
) -> Samples:
    """The work folder's store, every byte of it checked; skipped shards are reported. With
    ``fit.online``, the target itself instead.

    Args:
        device: where that target computes; None = this machine's first GPU, or the CPU.

    Raises:
        ValueError: nothing prepared yet, made for or by another target, or damaged shards that
            nobody asked to skip.
    """
    if settings.fit.online:
        return _online_store(settings, device or device_of(0))
    store = checked_store(settings, whole=True, skip_damaged=settings.fit.skip_damaged)
    for name, problem in store.skipped.items():
        report(f"left out: {store.folder / name}: {problem}")
    _refuse_too_few_answers(settings, store)
    return store


def checked_store(
    settings: TrainSettings, *, whole: bool = False, skip_damaged: bool = False
) -> Store:
    """The work folder's store, if it was made for the settings' target; else see ``Store``.

    Raises:
        ValueError: as ``Store``, or it was made for another target.
    """
    folder = work_folder(settings) / "store"
    refuse_other_target(read_meta(folder), target_folder(settings), folder)
    return Store(folder, whole=whole, skip_damaged=skip_damaged)


def _refuse_too_few_answers(settings: TrainSettings, store: Samples) -> None:
    numbers = [entry.prompt_id for entry in store.entries]
    refuse_too_few(numbers, settings.fit.validation_every, f"answers in {store.folder}")


def _online_store(settings: TrainSettings, device: str) -> OnlineStore:
    wanted_layers(settings)
    path = answers_file(settings)
    answers = read_answers(path)
    folder = target_folder(settings)
    dtype = getattr(torch, resolve_dtype(settings.generate.dtype, device=device))
    target = PlainTarget.from_folder(folder, dtype, device)
    store = OnlineStore(target, answers, settings.drafter.tap_layers(target.num_layers), path)
    if not store.entries:
        raise ValueError(f"fit.online needs answers in {path}: `train prepare --server URL`")
    _refuse_too_few_answers(settings, store)
    refuse_false(target, answers, str(folder))
    return store
