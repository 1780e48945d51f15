"""The progress of a training: lines for people, and a log."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sgl_entropy.base.progress import duration
from sgl_entropy.train.fit.costs import EpochCost
from sgl_entropy.train.fit.run_identity import Change
from sgl_entropy.train.loss.unrolled import StepFigures, StepMeans, sum_figures

_SECONDS = 15


class FitProgress:
    """Reports and logs one run of a training.

    Args:
        log: the file that gets a line of JSON for each line of progress.
        report: takes the lines of progress.
        quiet: report nothing, because another process of the group does.
        total: optimizer steps of the whole training.
        cost: draft steps of all batches that are left for this run.
    """

    def __init__(
        self, log: Path, report: Callable[[str], None], quiet: bool, total: int, cost: int
    ) -> None:
        self.log, self.report, self.quiet = log, report, quiet
        self.total, self.cost = total, cost
        self.done = 0
        self.began = self.told = time.monotonic()
        self.recent: list[list[StepFigures]] = []

    def learned(self, epoch: int, step: int, figures: list[StepFigures]) -> None:
        """Optimizer step ``step`` is done; reports the latest ones every 15 seconds."""
        self.recent.append(figures)
        self.done += len(figures)
        now = time.monotonic()
        if now - self.told <= _SECONDS:
            return
        by_step = sum_figures(self.recent)
        left = (now - self.began) / self.done * (self.cost - self.done)
        self._tell(
            f"epoch {epoch + 1} step {step}/{self.total} {_text(by_step)} left {duration(left)}",
            {"epoch": epoch + 1, "step": step, "train": _json(by_step)},
        )
        self.recent, self.told = [], now

    def validated(
        self, epoch: int, step: int, figures: Sequence[Sequence[StepFigures]], cost: EpochCost
    ) -> None:
        """``epoch`` is over and cost ``cost``; figures are of the batches held out."""
        by_step = sum_figures(figures)
        self._tell(
            f"epoch {epoch + 1} validation: {_text(by_step)}",
            {"epoch": epoch + 1, "step": step, "validation": _json(by_step), **asdict(cost)},
        )

    def changed(self, change: Change) -> None:
        """Settings are others from here on."""
        text = ", ".join(f"{key} {was} -> {now}" for key, (was, now) in change.changed.items())
        self._tell(f"from step {change.step} on: {text}", asdict(change))

    def holds_validation(self, epoch: int) -> bool:
        """Whether the log has the validation of ``epoch``; always true in a quiet process."""
        if self.quiet:
            return True
        if not self.log.is_file():
            return False
        rows = map(_row, self.log.read_text(encoding="utf-8").splitlines())
        return any("validation" in row and row["epoch"] == epoch + 1 for row in rows)

    def _tell(self, line: str, record: dict[str, Any]) -> None:
        """
        Raises:
            OSError: the log cannot be written; names it.
        """
        if self.quiet:
            return
        try:
            with self.log.open("a+b") as log:
                # A line that was cut by a full disk must not swallow the next one.
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - 1))
                cut = b"\n" if log.read(1) not in (b"", b"\n") else b""
                text = json.dumps({"time": round(time.time(), 1), **record}) + "\n"
                log.write(cut + text.encode())
        except OSError as error:
            raise OSError(f"{self.log}: cannot be written: {error.strerror}") from None
        self.report(line)


def _row(line: str) -> dict[str, Any]:
    """A line of the log; empty where it was cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _json(by_step: Sequence[StepMeans]) -> list[dict[str, float]]:
    return [asdict(means) for means in by_step]


def _text(by_step: Sequence[StepMeans]) -> str:
    return " ".join(f"[{i}] {f.loss:.3f} {f.accuracy:.3f}" for i, f in enumerate(by_step))
