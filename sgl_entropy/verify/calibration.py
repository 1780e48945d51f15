"""The calibration file: thresholds learned on held-out text, for one target and one drafter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from sgl_entropy.base.identity import Identity
from sgl_entropy.verify.policies import CalibratedStop
from sgl_entropy.verify.rule import EasdRule

FORMAT = 1
KIND = "sgl-entropy calibration"

_KEYS = {
    "format": int,
    "kind": str,
    "target": Mapping,
    "drafter": Mapping,
    "rule": Mapping,
    "draft_stop": Mapping,
    "positions": int,
    "texts": Mapping,
    "settings": Mapping,
    "rates": Mapping,
    "by_percentile": list,
    "date": str,
    "version": str,
}


@dataclass(frozen=True)
class Calibration:
    """Thresholds and the draft stop's table, with where they come from.

    Attributes:
        target, drafter: the two models that were measured.
        easd: its thresholds are the calibrated ones.
        edges, acceptance: the table of ``policies.CalibratedStop``.
        positions: judged ones, on which the thresholds rest.
        texts: ``files`` by name, ``sha256`` of the prompts' texts, ``prompts`` used.
        settings: of the measurement: percentiles, source, sizes.
        rates: ``Observations.rates`` of the rule.
        by_percentile: thresholds and rates at other percentiles, a row each.
        date: of the measurement, as YYYY-MM-DD; version: of this package.
    """

    target: Identity
    drafter: Identity
    easd: EasdRule
    edges: tuple[float, ...]
    acceptance: tuple[float, ...]
    positions: int
    texts: Mapping[str, Any]
    settings: Mapping[str, Any]
    rates: Mapping[str, Any]
    by_percentile: Sequence[Mapping[str, Any]]
    date: str
    version: str

    def rule(self) -> EasdRule:
        """EASD's rule with the calibrated thresholds."""
        return self.easd

    def stop(self, cost: float) -> CalibratedStop:
        """The draft stop for a draft step that costs as much as ``cost`` tokens."""
        return CalibratedStop(self.edges, self.acceptance, cost)

    def check(self, target: str | Path, drafter: str | Path) -> None:
        """Was it made for the models in these folders? Entropies of others are other ones.

        Raises:
            ValueError: a model is another one, or its weights cannot be read; names which.
        """
        wrong = []
        for what, made_for, folder in (
            ("target", self.target, target),
            ("drafter", self.drafter, drafter),
        ):
            found = Identity.of(folder)
            if found.sha256 != made_for.sha256:
                wrong.append(
                    f"its {what} is {made_for.name} (weights {made_for.sha256[:12]}), but {folder} "
                    f"holds weights {found.sha256[:12]}"
                )
        if wrong:
            raise ValueError(
                f"the calibration does not belong to these models: {'; '.join(wrong)}. Make one "
                "with `sgl-entropy calibrate`, or give the thresholds themselves"
            )

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it; ``from_dict`` reads it back."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "target": asdict(self.target),
            "drafter": asdict(self.drafter),
            "rule": self.easd.to_dict(),
            "draft_stop": {"edges": list(self.edges), "acceptance": list(self.acceptance)},
            "positions": self.positions,
            "texts": dict(self.texts),
            "settings": dict(self.settings),
            "rates": dict(self.rates),
            "by_percentile": [dict(row) for row in self.by_percentile],
            "date": self.date,
            "version": self.version,
        }

    @classmethod
    def from_dict(cls, held: Any) -> Calibration:
        """Raises ValueError for another format, wrong keys, and values that cannot be."""
        if not isinstance(held, Mapping) or held.get("kind") != KIND:
            _refuse(f'expected an object with "kind": "{KIND}", as `sgl-entropy calibrate` writes')
        if held.get("format") != FORMAT or type(held["format"]) is not int:
            _refuse(f"format {held.get('format')!r} is not known; this version reads {FORMAT}")
        _same_keys("", held, set(_KEYS))
        for name, kind in _KEYS.items():
            if not isinstance(held[name], kind) or isinstance(held[name], bool):
                _refuse(f"{name}: expected {_WORDS[kind]}, found {held[name]!r:.60}")
        if held["positions"] < 1:
            _refuse(f"positions must be at least 1, found {held['positions']}")
        _same_keys("rule: ", held["rule"], set(EasdRule().to_dict()))
        _same_keys("draft_stop: ", held["draft_stop"], {"edges", "acceptance"})
        edges, acceptance = (_numbers(name, held["draft_stop"]) for name in ("edges", "acceptance"))
        CalibratedStop(edges, acceptance, cost=0.5)
        rest = ("positions", "texts", "settings", "rates", "by_percentile", "date", "version")
        return cls(
            target=_identity("target", held),
            drafter=_identity("drafter", held),
            easd=EasdRule.from_dict(held["rule"]),
            edges=edges,
            acceptance=acceptance,
            **{name: held[name] for name in rest},
        )

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read the file.

        Raises:
            ValueError: not there, not readable, or no calibration; names the file and why.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            return cls.from_dict(json.loads(text, parse_constant=_no_number))
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


_WORDS = {int: "a whole number", str: "a string", Mapping: "an object", list: "a list"}


def _same_keys(where: str, held: Mapping[str, Any], wanted: set[str]) -> None:
    if missing := sorted(wanted - set(held)):
        _refuse(f"{where}missing key {', '.join(missing)}")
    if unknown := sorted(set(held) - wanted):
        _refuse(f"{where}unknown key {', '.join(unknown)}")


def _identity(name: str, held: Mapping[str, Any]) -> Identity:
    try:
        return Identity.from_dict(held[name])
    except ValueError as error:
        _refuse(f"{name}: {error}")


def _numbers(name: str, held: Mapping[str, Any]) -> tuple[float, ...]:
    value = held[name]
    if not isinstance(value, list) or any(type(one) not in (int, float) for one in value):
        _refuse(f"draft_stop: {name} must be a list of numbers, found {value!r:.60}")
    return tuple(value)


def _no_number(word: str) -> NoReturn:
    _refuse(f"{word} is not a number")


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
