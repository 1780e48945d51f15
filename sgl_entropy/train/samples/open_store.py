"""Open a training's samples: the store, checked, or the target itself; and begin a store."""

from __future__ import annotations

from collections.abc import Callable

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
    META,
    Samples,
    Store,
    StoreMeta,
    made_with,
    read_meta,
    refuse_other_settings,
)
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


def store_meta(work: Workspace, prompts_sha256: str, answers: str | None = None) -> StoreMeta:
    """The record that ``write_meta`` begins the work folder's store with.

    Args:
        answers: "given" where the answers are there already.

    Raises:
        ValueError: the folder holds a store of other settings or another target, or the target
            lacks a wanted layer.
    """
    settings, folder = work.settings.generate, work.store_folder
    # A store keeps the name, and the fingerprint or none, that it was begun with.
    if (folder / META).is_file():
        before = read_meta(folder).to_json()
        named = refuse_other_target(before, work.target, folder, by_name=True)
    else:
        named = made_for(work.target)
    meta = StoreMeta(
        work.stored_layers,
        int(work.model["hidden_size"]),
        settings.max_new_tokens,
        resolve_dtype(settings.dtype, made_with(folder)),
        named.get("target"),
        named.get("target_fingerprint"),
        prompts_sha256,
        answers,
    )
    refuse_other_settings(folder, meta)
    return meta


def open_store(work: Workspace, report: Report = print, device: str | None = None) -> Samples:
    """The work folder's store, every byte of it checked; skipped shards are reported. With
    ``fit.online``, the target itself instead.

    Args:
        device: where that target computes; None = this machine's first GPU, or the CPU.

    Raises:
        ValueError: nothing prepared yet, made for or by another target, or damaged shards that
            nobody asked to skip.
    """
    if work.settings.fit.online:
        return _online_store(work, device or device_of(0))
    store = checked_store(work, whole=True, skip_damaged=work.settings.fit.skip_damaged)
    for name, problem in store.skipped.items():
        report(f"left out: {store.folder / name}: {problem}")
    _refuse_too_few_answers(work, store)
    return store


def checked_store(work: Workspace, *, whole: bool = False, skip_damaged: bool = False) -> Store:
    """The work folder's store, after checking that it was made for the workspace's target.

    Raises:
        ValueError: as ``Store``, or it was made for another target.
    """
    recorded = read_meta(work.store_folder).to_json()
    refuse_other_target(recorded, work.target, work.store_folder)
    return Store(work.store_folder, whole=whole, skip_damaged=skip_damaged)


def _refuse_too_few_answers(work: Workspace, store: Samples) -> None:
    numbers = [entry.prompt_id for entry in store.entries]
    refuse_too_few(numbers, work.settings.fit.validation_every, f"answers in {store.folder}")


def _online_store(work: Workspace, device: str) -> OnlineStore:
    work.check_layers()
    path, settings = work.answers_file, work.settings
    answers = read_answers(path)
    dtype = getattr(torch, resolve_dtype(settings.generate.dtype, device=device))
    target = PlainTarget.from_folder(work.target, dtype, device)
    store = OnlineStore(target, answers, settings.drafter.tap_layers(work.num_layers), path)
    if not store.entries:
        raise ValueError(f"fit.online needs answers in {path}: `train prepare --server URL`")
    _refuse_too_few_answers(work, store)
    refuse_false(target, answers, str(work.target))
    return store
