"""What a comparison keeps of each fit: its cost, and how its drafter was judged. JSON files hold
the same, in the fit's folder and in the comparison's report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.drafter.config import Algorithm
from sgl_entropy.train.fit.trainer import Fit
from sgl_entropy.train.machine.processes import device_name
from sgl_entropy.train.plan.counts import muon_flops, training_flops


@dataclass(frozen=True)
class FitRecord:
    """What a fit took.

    Attributes:
        answer_tokens: that an epoch learned from.
        seconds: in optimizer steps, on ``device``.
        epochs: by epoch, rows through the drafter's layer and its head (``layer_rows``,
            ``head_rows``).
        flops: of those rows and of Muon's matmuls; see ``training_flops``.
    """

    answer_tokens: int
    seconds: float
    device: str
    epochs: dict[str, dict[str, int]]
    flops: float

    @classmethod
    def of(cls, fit: Fit) -> FitRecord:
        """Of a fit that has ended."""
        return cls(
            sum(entry.length - entry.prompt_length for entry in fit.samples.train),
            round(fit.seconds, 1),
            device_name(fit.group.device),
            fit.costs.to_json(),
            training_flops(fit.config, fit.costs.layer_rows, fit.costs.head_rows)
            + fit.step * muon_flops(fit.config, fit.settings),
        )

    def rows(self, key: str) -> int:
        """Of all epochs; ``key``: layer_rows or head_rows."""
        return sum(epoch[key] for epoch in self.epochs.values())


@dataclass(frozen=True)
class JudgedBy:
    """The prompts and the chains that a drafter was judged by: ``evaluate`` of the settings.

    Attributes:
        benchmarks: the folder's name; ``sha256``: of the prompts.
        dtype, sha256: None in records that were made before they held them.
    """

    benchmarks: str
    prompts: int
    depth: int
    max_new_tokens: int
    dtype: str | None = None
    sha256: str | None = None

    def agrees_with(self, other: JudgedBy) -> bool:
        """Whether all that this says is the same there."""
        theirs = asdict(other)
        return all(value in (None, theirs[key]) for key, value in asdict(self).items())


@dataclass(frozen=True)
class JudgedFit:
    """One recipe with one seed, fitted and judged.

    Attributes:
        arm: the recipe's name; ``curve``: of which learning curve it is a point.
        layers: that its drafter taps.
        prompts: (group, tokens, cycles) of each prompt.
        accepted_at: drafts accepted at each place of the chain; None in records that were made
            before they held them.
    """

    arm: str
    curve: str
    seed: int
    algorithm: Algorithm
    layers: list[int]
    evaluate: JudgedBy
    fit: FitRecord
    prompts: list[tuple[str, int, int]]
    accepted_at: list[int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what is None."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        judged = known["evaluate"].items()
        return {**known, "evaluate": {key: value for key, value in judged if value is not None}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JudgedFit:
        """From a record of any age."""
        return cls(
            data["arm"],
            data.get("curve", ""),
            data["seed"],
            data["algorithm"],
            data.get("layers", []),
            JudgedBy(**data["evaluate"]),
            FitRecord(**data["fit"]),
            [(group, tokens, cycles) for group, tokens, cycles in data["prompts"]],
            data.get("accepted_at"),
        )


def read_judged(path: Path) -> JudgedFit | None:
    """None where there is no record, or one that was cut short."""
    try:
        return JudgedFit.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
