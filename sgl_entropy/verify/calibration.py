"""The calibration file: thresholds learned on held-out text, for one target and one drafter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_entropy.base.identity import Identity
from sgl_entropy.base.json_file import no_constant
from sgl_entropy.base.typed_json import FLAT, as_json, from_json
from sgl_entropy.verify.observations import FireRates, Observations, StopTable
from sgl_entropy.verify.policies import CalibratedStop
from sgl_entropy.verify.rule import EasdRule

FORMAT = 1
KIND = "sgl-entropy calibration"

# Rows of the table beside the chosen percentiles.
PERCENTILES = (50, 60, 70, 80, 90, 95)


@dataclass(frozen=True)
class CalibrationTexts:
    """The held-out texts: names of files, sha256 of the prompts' texts, prompts used."""

    files: tuple[str, ...]
    sha256: str
    prompts: int


@dataclass(frozen=True)
class Percentiles:
    """Of the target's and the drafter's entropies, 0 to 100: the thresholds."""

    target: float
    draft: float


@dataclass(frozen=True)
class CalibrationSettings:
    """How the cycles were measured.

    Attributes:
        source: ``offline`` or ``server``.
        dtype: the target's; None = a server's.
        depth: of the chains.
        max_new_tokens: of an answer.
        cycles, tokens: that were measured.
    """

    percentiles: Percentiles
    source: str
    dtype: str | None
    depth: int
    max_new_tokens: int
    cycles: int
    tokens: int


@dataclass(frozen=True)
class PercentileRates:
    """Thresholds at one percentile of both entropies, and what they would do."""

    percentile: float
    target_entropy: float
    draft_entropy: float
    rates: FireRates = field(metadata=FLAT)


@dataclass(frozen=True)
class Calibration:
    """Thresholds and the draft stop's table, with where they come from.

    Attributes:
        target, drafter: the two models that were measured.
        rule: EASD's, with the calibrated thresholds.
        positions: judged ones, on which the thresholds rest.
        rates: of ``rule``.
        by_percentile: the same at other percentiles.
        date: of the measurement, as YYYY-MM-DD; version: of this package.
    """

    target: Identity
    drafter: Identity
    rule: EasdRule
    draft_stop: StopTable
    positions: int
    texts: CalibrationTexts
    settings: CalibrationSettings
    rates: FireRates
    by_percentile: tuple[PercentileRates, ...]
    date: str
    version: str

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ValueError(f"positions must be at least 1, found {self.positions}")
        self.stop(cost=0.5)  # checks the table

    def stop(self, cost: float) -> CalibratedStop:
        """The draft stop for a draft step that costs as much as ``cost`` tokens."""
        return CalibratedStop(self.draft_stop.edges, self.draft_stop.acceptance, cost)

    def check(self, target: str | Path, drafter: str | Path) -> None:
        """Was it made for the models in these folders? Other models have other entropies.

        Raises:
            ValueError: a model is another one, or its weights cannot be read; names which.
        """
        wrong = []
        for what, made_for, folder in (
            ("target", self.target, target),
            ("drafter", self.drafter, drafter),
        ):
            given = Identity.of(folder)
            if given.sha256 != made_for.sha256:
                wrong.append(
                    f"its {what} is {made_for.name} (weights {made_for.sha256[:12]}), but {folder} "
                    f"holds weights {given.sha256[:12]}"
                )
        if wrong:
            raise ValueError(
                f"the calibration does not belong to these models: {'; '.join(wrong)}. Make one "
                "with `sgl-entropy calibrate`, or give the thresholds themselves"
            )

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it; ``from_dict`` reads it back."""
        parts = {name: as_json(value) for name, value in vars(self).items()}
        return {"format": FORMAT, "kind": KIND, **parts}

    @classmethod
    def from_dict(cls, raw: Any) -> Calibration:
        """Raises ValueError for another format, wrong keys, and values that cannot be."""
        if not isinstance(raw, Mapping) or raw.get("kind") != KIND:
            raise ValueError(
                f'expected an object with "kind": "{KIND}", as `sgl-entropy calibrate` writes'
            )
        if raw.get("format") != FORMAT or type(raw["format"]) is not int:
            raise ValueError(
                f"format {raw.get('format')!r} is not known; this version reads {FORMAT}"
            )
        return from_json(cls, {k: v for k, v in raw.items() if k not in ("format", "kind")})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read the file.

        Raises:
            ValueError: not there, not readable, or no calibration; names the file and why.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            return cls.from_dict(json.loads(text, parse_constant=no_constant))
        except FileNotFoundError:
            raise ValueError(
                f"calibration {path}: no such file; `sgl-entropy calibrate` makes one"
            ) from None
        except OSError as error:
            raise ValueError(f"calibration {path}: cannot be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"calibration {path}: not JSON: {error}") from None
        except ValueError as error:
            raise ValueError(f"calibration {path}: {error}") from None


def rates_by_percentile(seen: Observations, rule: EasdRule) -> tuple[PercentileRates, ...]:
    """Rows of ``PERCENTILES``, with N and overlap of ``rule``."""
    rules = [(at, seen.rule(at, at, rule.top_n, rule.overlap)) for at in PERCENTILES]
    return tuple(
        PercentileRates(at, one.target_entropy, one.draft_entropy, seen.rates(one))
        for at, one in rules
    )
