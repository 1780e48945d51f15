"""A training's checkpoints in its folder: the newest state and the one before it.

A new checkpoint is written beside the last one, synced, and takes its place when it is complete;
the last one becomes the previous. So a kill, a full disk or a power cut costs only the steps since
the last checkpoint, and a file that is damaged later costs one generation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgl_entropy.train.fit.costs import Costs
from sgl_entropy.train.fit.run_identity import Change, RunIdentity


@dataclass(frozen=True)
class FitState:
    """Where a training stands.

    Attributes:
        step: optimizer steps so far.
        costs, seconds: of all runs so far.
        changes: settings that were changed on the way.
        drafter: weights by name.
        optimizer: the states of ``Optimizers``.
        tap_scale: float32 [taps * d], by which taps are divided in this training.
    """

    identity: RunIdentity
    step: int
    costs: Costs
    seconds: float
    changes: list[Change]
    drafter: dict[str, Tensor]
    optimizer: list[dict[str, Any]]
    tap_scale: Tensor

    def to_file(self) -> dict[str, Any]:
        """Plain containers and tensors, which ``torch.load`` reads without running code."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        changes = [asdict(change) for change in self.changes]
        costs = self.costs.to_json()
        return whole | {"identity": asdict(self.identity), "costs": costs, "changes": changes}

    @classmethod
    def from_file(cls, raw: dict[str, Any]) -> FitState:
        """From ``to_file``. Files from before changes were recorded have none, and the state of a
        single optimizer was no list.

        Raises:
            KeyError: something is missing.
        """
        parts = {field.name: raw[field.name] for field in fields(cls) if field.name != "changes"}
        parts["identity"] = RunIdentity(**raw["identity"])
        parts["costs"] = Costs.from_json(raw["costs"])
        parts["changes"] = [Change(**change) for change in raw.get("changes", [])]
        if not isinstance(raw["optimizer"], list):
            parts["optimizer"] = [raw["optimizer"]]
        return cls(**parts)


class Checkpoints:
    """The two checkpoints of a folder.

    Attributes:
        path, previous: the newest one and the one before it.
        note: what was amiss when they were read; empty = nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.previous = folder / "checkpoint.pt", folder / "checkpoint.previous.pt"
        self.note = ""
        self._damaged = False

    def load(self) -> FitState | None:
        """The newest undamaged state; None where there is no checkpoint.

        Raises:
            ValueError: all checkpoints are damaged, or an undamaged one cannot be read; names the
                files.
            OSError: a file cannot be opened, or the disk fails.
        """
        wrong = [] if self.path.exists() else [f"{self.path} is missing"]
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except _Damaged as error:
                wrong.append(f"{path} is damaged ({error})")
                self._damaged = True
                continue
            if path == self.previous:
                self.note = f"{wrong[0]}: going on from {path}, step {state.step}"
            return state
        if not self._damaged:
            return None
        raise ValueError(
            f"{'; '.join(wrong)}. There is nothing to go on from: put a sound copy there, or "
            f"remove what is damaged to begin anew"
        )

    def save(self, state: FitState) -> None:
        """Make ``state`` the newest checkpoint, completely or not at all.

        Raises:
            OSError: it cannot be written; names the file, and the checkpoint that is kept.
        """
        partial = self.path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state.to_file(), file)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists() and not self._damaged:
                self._keep()
            partial.replace(self.path)
            self._damaged = False
            _sync(self.path.parent)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its own.
            cause = error if isinstance(error, OSError) else error.__context__
            why = cause.strerror if isinstance(cause, OSError) else error
            kept = self.previous if self._damaged or not self.path.exists() else self.path
            last = (
                f"{kept} is the last one, from which the same command goes on once that is mended"
                if kept.exists()
                else "There is none before it: the same command begins anew"
            )
            raise OSError(f"{self.path}: cannot be written: {why}. {last}") from None
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _keep(self) -> None:
        """Keep the newest as the previous too, without removing it for a moment."""
        self.previous.unlink(missing_ok=True)
        try:
            os.link(self.path, self.previous)
        except OSError:  # a file system without hard links
            self.path.replace(self.previous)

    def forget_previous(self) -> None:
        """Remove the previous checkpoint: a finished training needs one."""
        self.previous.unlink(missing_ok=True)


class _Damaged(Exception):
    """Not what was written."""


def _read(path: Path) -> FitState:
    with path.open("rb") as file:
        try:
            # torch itself never looks at the checksums that it writes.
            with zipfile.ZipFile(file) as archive:
                if (bad := archive.testzip()) is not None:
                    raise _Damaged(f"{bad} is not what was written")
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError) as error:
            raise _Damaged(f"{path.stat().st_size} bytes, {error}") from None
        except OSError as error:
            # EINVAL: a seek before the start, in a directory that was cut. Others: the disk.
            if error.errno != errno.EINVAL:
                raise
            raise _Damaged(f"{path.stat().st_size} bytes, {error}") from None
        file.seek(0)
        try:
            raw = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, pickle.PickleError) as error:
            # The file is complete; memory may be short. Nothing should be removed.
            raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        return FitState.from_file(raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise _Damaged("it holds something else") from None


def _sync(folder: Path) -> None:
    """Make renames in ``folder`` last."""
    at = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
