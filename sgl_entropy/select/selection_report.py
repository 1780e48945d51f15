"""EDSelect's report: JSON, a table for people, and the choice read back by trainings."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgl_entropy import __version__
from sgl_entropy.base.json_file import read_object
from sgl_entropy.base.tables import text_table
from sgl_entropy.base.typed_json import as_json
from sgl_entropy.drafter.config import hidden_state_number, target_layer_id
from sgl_entropy.select.against import ScoredPairs
from sgl_entropy.select.choice import Choice, ranked
from sgl_entropy.select.probe import Probe
from sgl_entropy.select.settings import SelectSettings

RUNNER_UPS = 3


@dataclass(frozen=True)
class TextsUsed:
    """Names of the files, sha256 of their bytes, texts used and passed over as too short."""

    file: str
    sha256: str
    count: int
    short: int
    tokens: int


@dataclass(frozen=True)
class Profile:
    """One metric over hidden states 0 .. L.

    Attributes:
        values: radians of curvature, nats of LiDAR.
        interval: of each hidden state, see ``bootstrap.interval``.
        share: of the resamples in which the chosen state wins (a runner-up: without the other
            metric's pick).
    """

    values: list[float]
    interval: list[tuple[float, float]]
    share: float


@dataclass(frozen=True)
class SelectReport:
    """Both profiles, the choice and how sure it is.

    Attributes:
        target: the folder's name.
        threads, seconds: of the run.
        probe: chooses instead of the metrics; None = they do.
        against: the scores beside trained drafters.
    """

    target: str
    texts: TextsUsed
    settings: SelectSettings
    curvature: Profile
    lidar: Profile
    choice: Choice
    threads: int
    seconds: float
    probe: Probe | None = None
    against: ScoredPairs | None = None

    @property
    def target_layer_ids(self) -> tuple[int, int]:
        """What a drafter is to tap."""
        return self.choice.target_layer_ids if self.probe is None else self.probe.best

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` writes it; layers in both numberings, pairs rising as configs want them."""
        choice, settings = self.choice, self.settings
        return {
            "choice": {
                "hidden_states": [hidden_state_number(one) for one in self.target_layer_ids],
                "target_layer_ids": list(self.target_layer_ids),
                "by": "metrics" if self.probe is None else "probe",
                "a": {**_both(choice.a), "metric": "curvature", "fixed": "a" in choice.fixed},
                "b": {**_both(choice.b), "metric": "lidar", "fixed": "b" in choice.fixed},
                "runner_up": choice.stepped_down or None,
            },
            **({} if self.probe is None else {"probe": _probe_dict(self.probe)}),
            **({} if self.against is None else {"against": as_json(self.against)}),
            "profiles": {
                "curvature": [round(value, 6) for value in self.curvature.values],
                "lidar": [round(value, 6) for value in self.lidar.values],
            },
            "runner_ups": {
                "curvature": _others(self.curvature, choice.a),
                "lidar": _others(self.lidar, choice.b),
            },
            "stability": {
                "a_share": round(self.curvature.share, 4),
                "b_share": round(self.lidar.share, 4),
                "resamples": {
                    "curvature": settings.resamples,
                    "lidar": settings.lidar_resamples,
                },
                "interval": "5 to 95 % of the resamples, their mean moved onto the profile",
                "curvature": [[round(e, 6) for e in ends] for ends in self.curvature.interval],
                "lidar": [[round(e, 6) for e in ends] for ends in self.lidar.interval],
            },
            "texts": asdict(self.texts),
            "target": self.target,
            "views": settings.views,
            "seed": settings.seed,
            "settings": asdict(settings),
            "threads": self.threads,
            "seconds": round(self.seconds, 1),
            "versions": {
                "sgl-entropy": __version__,
                **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            },
        }

    def table(self) -> str:
        """For people: both profiles, marks, the choice, the runner-ups."""
        header = ("hidden state", "layer id", "curvature", "5-95 %", "LiDAR", "5-95 %", "")
        marks = {self.choice.a: "<- a (curvature)", self.choice.b: "<- b (LiDAR)"}
        marks |= dict.fromkeys((0, len(self.lidar.values) - 1), "not a candidate")
        rows = []
        for state, (curvature, lidar) in enumerate(
            zip(self.curvature.values, self.lidar.values, strict=True)
        ):
            rows.append(
                (
                    str(state),
                    "-" if state == 0 else str(target_layer_id(state)),
                    f"{curvature:.4f}",
                    "{:.4f}-{:.4f}".format(*self.curvature.interval[state]),
                    f"{lidar:.4f}",
                    "{:.4f}-{:.4f}".format(*self.lidar.interval[state]),
                    marks.get(state, ""),
                )
            )
        return "\n".join([text_table(header, rows), "", *self.summary()])

    def summary(self) -> list[str]:
        """The choice in words."""
        choice, settings = self.choice, self.settings
        lines = []
        for name, state, metric, profile, resamples in (
            ("a", choice.a, "curvature", self.curvature, settings.resamples),
            ("b", choice.b, "LiDAR", self.lidar, settings.lidar_resamples),
        ):
            why = f"highest {metric}"
            if name in choice.fixed:
                why = f"fixed by --fix-{name}"
            elif choice.stepped_down == name:
                other, taken = ("b", choice.b) if name == "a" else ("a", choice.a)
                why = f"runner-up by {metric} (the first, hidden state {taken}, is {other})"
            others = ", ".join(
                f"{row['hidden_state']} ({row['value']:.4f})" for row in _others(profile, state)
            )
            lines += [
                f"{name} = {state_name(state)}: {why}; first in {profile.share:.0%} of "
                f"{resamples} resamples of the texts",
                f"    others by {metric}: {others}",
            ]
        if self.probe is not None:
            lines += _probe_lines(self.probe, choice.target_layer_ids)
        if self.against is not None:
            lines += ["", self.against.table(), ""]
        ids = ", ".join(map(str, self.target_layer_ids))
        return [*lines, f"target_layer_ids: [{ids}]"]


def state_name(state: int) -> str:
    """A hidden state in both numberings."""
    return f"hidden state {state} (layer id {target_layer_id(state)})"


def read_choice(path: str | Path) -> tuple[int, int]:
    """The ``target_layer_ids`` of a report that ``sgl-entropy select --json`` wrote, rising.

    Raises:
        ValueError: no such file, no such report, or one whose numbers do not agree.
    """
    path = Path(path)
    raw = read_object(path)
    choice, profiles = raw.get("choice"), raw.get("profiles")
    ids = choice.get("target_layer_ids") if isinstance(choice, dict) else None
    curvature = profiles.get("curvature") if isinstance(profiles, dict) else None
    if not isinstance(choice, dict) or not isinstance(ids, list) or not isinstance(curvature, list):
        raise ValueError(
            f"{path}: not a report of `sgl-entropy select --json`: expected "
            "choice.target_layer_ids and profiles.curvature"
        )
    highest = len(curvature) - 3  # hidden states 0 .. L, and the last layer but one at most
    if len(ids) != 2 or any(type(layer) is not int for layer in ids):
        raise ValueError(f"{path}: choice.target_layer_ids: expected two integers, found {ids!r}")
    low, high = ids
    if not 0 <= low < high <= highest:
        raise ValueError(
            f"{path}: choice.target_layer_ids: expected two rising layer ids from 0 to {highest}, "
            f"found {ids!r}"
        )
    states = choice.get("hidden_states")
    if states != [hidden_state_number(layer) for layer in ids]:
        raise ValueError(
            f"{path}: choice.hidden_states {json.dumps(states)} and target_layer_ids {ids!r} "
            "name different layers (a hidden state's number is its layer id plus 1)"
        )
    return low, high


def _probe_dict(probe: Probe) -> dict[str, Any]:
    return {
        "explained": [round(one, 4) for one in probe.alone],
        "pairs": [
            {"target_layer_ids": list(pair), "explained": round(share, 4)}
            for pair, share in probe.pairs.items()
        ],
        "best_share": round(probe.share, 4),
        "rows": {"learned": probe.learned, "held_out": probe.held_out},
    }


def _probe_lines(probe: Probe, metrics: tuple[int, int]) -> list[str]:
    best = list(probe.pairs.items())[: RUNNER_UPS + 1]
    others = ", ".join(f"{list(pair)} ({share:.3f})" for pair, share in best[1:])
    (pair, share), *_ = best
    lines = [
        f"probe: layer ids {list(pair)} explain {share:.1%} of the next final state; first in "
        f"{probe.share:.0%} of the resamples of held-out texts",
        f"    others by the probe: {others}",
    ]
    return [*lines, f"    the metrics' {list(metrics)}: {probe.pairs[metrics]:.1%}"]


def _both(state: int) -> dict[str, int]:
    return {"hidden_state": state, "target_layer_id": target_layer_id(state)}


def _others(profile: Profile, chosen: int) -> list[dict[str, Any]]:
    """The best few candidates besides the chosen one."""
    states = ranked(profile.values, {chosen})[:RUNNER_UPS]
    return [{**_both(state), "value": round(profile.values[state], 6)} for state in states]
