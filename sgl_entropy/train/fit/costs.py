"""What a training costs in rows: through the drafter's layer and through its head, by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from sgl_entropy.train.loss.unrolled import StepFigures


@dataclass
class EpochCost:
    """Rows of one epoch so far. A row is a chain at one draft step; the head sees those alone that
    count."""

    layer_rows: int = 0
    head_rows: int = 0


@dataclass
class Costs:
    """Rows of all runs of a training together; ``epochs`` counts them from 1."""

    epochs: dict[int, EpochCost] = field(default_factory=dict)

    def add(self, epoch: int, figures: Sequence[StepFigures]) -> None:
        """Add a batch of ``epoch``, counted from 0."""
        cost = self.epochs.setdefault(epoch + 1, EpochCost())
        cost.layer_rows += sum(f.rows for f in figures)
        cost.head_rows += sum(f.counted for f in figures)

    @property
    def layer_rows(self) -> int:
        """Of all epochs."""
        return sum(cost.layer_rows for cost in self.epochs.values())

    @property
    def head_rows(self) -> int:
        """Of all epochs."""
        return sum(cost.head_rows for cost in self.epochs.values())

    def to_json(self) -> dict[str, dict[str, int]]:
        """As checkpoints and ``fit.json`` hold it."""
        return {str(epoch): asdict(cost) for epoch, cost in self.epochs.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Mapping[str, int]]) -> Costs:
        """From ``to_json``."""
        return cls({int(epoch): EpochCost(**cost) for epoch, cost in raw.items()})
