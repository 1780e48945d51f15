"""How a training goes: what it costs and learns, told in lines and logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sgl_entropy.train.group import Group
from sgl_entropy.train.objective import StepFigures, sum_figures

# Rows run through the layer and through the head, by epoch: "1" and on.
Costs = dict[str, dict[str, int]]
_SECONDS = 15


def add_rows(costs: Costs, epoch: int, figures: Sequence[StepFigures]) -> None:
    """Add a batch to what its epoch (from 0) cost."""
    cost = costs.setdefault(str(epoch + 1), {"layer_rows": 0, "head_rows": 0})
    cost["layer_rows"] += sum(f.rows for f in figures)
    cost["head_rows"] += sum(f.counted for f in figures)


def add_up(figures: Tensor, group: Group) -> list[StepFigures]:
    """The figures of all processes together; ``figures`` [steps, 4] as a batch's loss has them."""
    return [
        StepFigures(int(counted), loss, int(right), int(rows))
        for counted, loss, right, rows in group.sum(figures).tolist()
    ]


class Progress:
    """Tells how one run of a training goes.

    Args:
        log: takes a line of JSON for each line of progress.
        report: takes the lines of progress.
        quiet: tell nothing: another process of the group does.
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
        """Optimizer step ``step`` is done; tells of the last ones every 15 seconds."""
        self.recent.append(figures)
        self.done += len(figures)
        now = time.monotonic()
        if now - self.told <= _SECONDS:
            return
        by_step = sum_figures(self.recent)
        left = (now - self.began) / self.done * (self.cost - self.done)
        self._tell(
            f"epoch {epoch + 1} step {step}/{self.total} {_text(by_step)} left {left / 60:.1f} min",
            {"epoch": epoch + 1, "step": step, "train": by_step},
        )
        self.recent, self.told = [], now

    def validated(
        self, epoch: int, step: int, figures: Sequence[Sequence[StepFigures]], costs: Costs
    ) -> None:
        """``epoch`` is over; figures are of the batches held out."""
        by_step = sum_figures(figures)
        self._tell(
            f"epoch {epoch + 1} validation: {_text(by_step)}",
            {"epoch": epoch + 1, "step": step, "validation": by_step, **costs[str(epoch + 1)]},
        )

    def _tell(self, line: str, record: dict[str, Any]) -> None:
        if self.quiet:
            return
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"time": round(time.time(), 1), **record}) + "\n")
        self.report(line)


def _text(by_step: Sequence[dict[str, float]]) -> str:
    return " ".join(f"[{i}] {f['loss']:.3f} {f['accuracy']:.3f}" for i, f in enumerate(by_step))
