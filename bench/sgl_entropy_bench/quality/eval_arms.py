"""The arms of an evaluation: a server, and what each of its requests asks for.

Two arms may share a server and differ in their requests alone, as EASD on and off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_entropy.base.table_file import read_table
from sgl_entropy_bench.load.run.arms import LoadArm, arms_of, parse_arms

_OURS = ("url", "custom_params", "temperature")


@dataclass(frozen=True)
class EvalArm:
    """One arm.

    Attributes:
        server: where its requests go; equal ones are one server.
        custom_params: of each request's sampling parameters, as ``{"easd": false}``.
        temperature: None = the evaluation's.
    """

    name: str
    server: LoadArm
    custom_params: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None

    @property
    def place(self) -> tuple[Any, ...]:
        """Arms with the same place share a server."""
        one = self.server
        return one.url.rstrip("/"), one.command, tuple(sorted(one.environment.items()))

    def shown(self) -> str:
        """The parameters of its requests, for captions."""
        parts = [json.dumps(self.custom_params)] if self.custom_params else []
        if self.temperature is not None:
            parts.append(f"temperature {self.temperature:g}")
        return ", ".join(parts) or "no parameters of its own"


def parse_eval_arms(texts: Sequence[str]) -> tuple[EvalArm, ...]:
    """``NAME=URL``, ``NAME=URL,NAME=URL`` or ``NAME=URL;CUSTOM_PARAMS`` (a JSON object), each text.

    Raises:
        ValueError: another form, parameters that are no JSON object, or a name twice.
    """
    arms: list[EvalArm] = []
    for text in texts:
        where, semicolon, written = text.partition(";")
        specs = parse_arms(where)
        params: Any = {}
        if semicolon:
            if len(specs) > 1:
                raise ValueError(f"--arms {text}: parameters follow one arm; repeat --arms")
            try:
                params = json.loads(written)
            except ValueError as error:
                raise ValueError(f"--arms {text}: {written!r} is no JSON: {error}") from None
        arms += [EvalArm(spec.name, spec, _params(f"--arms {text}", params)) for spec in specs]
    return _distinct(arms, "--arms")


def read_eval_arms(path: Path) -> tuple[EvalArm, ...]:
    """An arms file as the load tester's, or with a ``url`` in every arm instead of ``command``;
    each arm may have ``custom_params`` and ``temperature``.

    Raises:
        ValueError: not readable as such, unknown keys, or values of another type.
    """
    raw = read_table(path)
    rows = raw.get("arms")
    if not isinstance(rows, list) or not all(isinstance(one, dict) for one in rows) or not rows:
        raise ValueError(f"{path}: expected at least one [[arms]]")
    with_url = ["url" in one for one in rows]
    if any(with_url):
        if not all(with_url) or set(raw) > {"arms"}:
            raise ValueError(
                f"{path}: either every arm has a url, and nothing is started, or none has"
            )
        specs = [_running(path, number, one) for number, one in enumerate(rows)]
    else:
        plain = [{k: v for k, v in one.items() if k not in _OURS} for one in rows]
        specs = list(arms_of(path, {**raw, "arms": plain}))
    arms = []
    for number, (one, spec) in enumerate(zip(rows, specs, strict=True)):
        at = f"{path}: arms[{number}]"
        arms.append(
            EvalArm(
                spec.name,
                spec,
                _params(at, one.get("custom_params", {})),
                _temperature(at, one.get("temperature")),
            )
        )
    return _distinct(arms, str(path))


def _running(path: Path, number: int, one: Mapping[str, Any]) -> LoadArm:
    at = f"{path}: arms[{number}]"
    if wrong := sorted(set(one) - {"name", *_OURS}):
        raise ValueError(f"{at}: unknown keys {', '.join(wrong)} in an arm with a url")
    if not isinstance(one.get("name"), str) or not isinstance(one["url"], str):
        raise ValueError(f"{at} needs a name and a url, both texts")
    if set(",;") & set(one["name"] + one["url"]):
        raise ValueError(f"{at}: neither a name nor a url holds , or ;")
    (spec,) = parse_arms(f"{one['name']}={one['url']}")
    return spec


def _params(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'{where}: custom_params must be an object as {{"easd": false}}')
    easd = value.get("easd", False)
    if not isinstance(easd, (bool, dict)):
        raise ValueError(f"{where}: easd must be true, false or an object, found {easd!r}")
    return value


def _temperature(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{where}: temperature must be a number from 0, found {value!r}")
    return float(value)


def _distinct(arms: list[EvalArm], where: str) -> tuple[EvalArm, ...]:
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: every arm needs a name of its own")
    return tuple(arms)
