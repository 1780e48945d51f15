"""The settings file of a training: sections with typed, checked keys, and flags that override.

A settings file is TOML (or JSON) with the sections below; unknown sections and keys are refused,
since a misspelt key would silently train something else.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sgl_entropy.base.table_file import read_table
from sgl_entropy.train.machine.dtype import DTYPES
from sgl_entropy.train.settings.checks import no_layers, out_of_range
from sgl_entropy.train.settings.drafter import DrafterSettings
from sgl_entropy.train.settings.fit import FitSettings


@dataclass(frozen=True)
class PromptSettings:
    """Where prompts come from; see ``texts.collect_texts``.

    Attributes:
        questions: a file of rows with ``turns``, ``conversations``, ``question``, ``text`` or
            ``prompt``, or of plain lines; the first turn of each row is a prompt. Empty = none.
        conversations: a JSON Lines file with ``conversations``; empty = none.
        max_tokens: longer prompts are cut to this many tokens, chat template included.
        skip: leave out this many prompts from the start, which an earlier round has learned from.
        seed: decides which texts are chosen, and their order.
    """

    questions: str = ""
    conversations: str = ""
    max_tokens: int = 640
    skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse(
            *out_of_range("prompts", self, ("max_tokens",), 1),
            *out_of_range("prompts", self, ("skip", "seed"), 0),
        )


@dataclass(frozen=True)
class GenerateSettings:
    """How answers are generated.

    Attributes:
        answer_tokens: stop after about this many answer tokens.
        max_new_tokens: the longest answer, in tokens.
        workers: how many processes work, with one thread each.
        slots: sequences that a worker decodes at once.
        extra_layers: layers (from 0) to store in addition to those that the drafters tap, so that
            drafters with other taps can be compared on the same store.
        temperatures: answer every prompt once at each temperature, in this order, until there are
            enough tokens; 0 = greedy. Must be [0] except for `train prepare` with fit.online.
        dtype: of the target's weights and matmuls; auto = the faster one here.
    """

    answer_tokens: int = 425_000
    max_new_tokens: int = 192
    workers: int = 2
    slots: int = 96
    extra_layers: tuple[int, ...] = ()
    temperatures: tuple[float, ...] = (0.0,)
    dtype: str = "auto"

    def __post_init__(self) -> None:
        counts = ("answer_tokens", "max_new_tokens", "workers", "slots")
        wrong = out_of_range("generate", self, counts, 1)
        wrong += no_layers("generate", "extra_layers", self.extra_layers, empty=True)
        if not self.temperatures or any(not 0 <= t < math.inf for t in self.temperatures):
            wrong.append(
                f"generate.temperatures must list numbers from 0, found {list(self.temperatures)!r}"
            )
        if self.dtype not in DTYPES:
            wrong.append(f"generate.dtype must be one of {DTYPES}, found {self.dtype!r}")
        _refuse(*wrong)


@dataclass(frozen=True)
class EvaluateSettings:
    """How tau is measured: the first turns of a few prompts of each benchmark, greedily.

    Attributes:
        benchmarks: a folder of JSON Lines files with ``turns``.
        prompts: take this many prompts from the start of each file.
        depth: draft tokens in a chain.
        max_new_tokens: the longest answer, in tokens.
        dtype: of the target, bfloat16 or float32; the drafter runs in float32.
    """

    benchmarks: str = ""
    prompts: int = 20
    depth: int = 4
    max_new_tokens: int = 96
    dtype: str = "float32"

    def __post_init__(self) -> None:
        wrong = out_of_range("evaluate", self, ("prompts", "depth", "max_new_tokens"), 1)
        if self.dtype not in DTYPES[1:]:  # measured are drafters, not this machine
            wrong.append(f"evaluate.dtype must be one of {DTYPES[1:]}, found {self.dtype!r}")
        _refuse(*wrong)


def _refuse(*wrong: str) -> None:
    """
    Raises:
        ValueError: there is something wrong.
    """
    if wrong:
        raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class TrainSettings:
    """Everything.

    Attributes:
        target: a Hugging Face llama folder; empty = the small real target.
        work: folder for prompts, store, checkpoints and logs; empty = in the cache folder.
    """

    target: str = ""
    work: str = ""
    prompts: PromptSettings = field(default_factory=PromptSettings)
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    drafter: DrafterSettings = field(default_factory=DrafterSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)


def load_settings(path: Path | None, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read a settings file and apply ``SECTION.KEY=VALUE`` overrides (values as in TOML).

    Raises:
        ValueError: not readable as TOML or JSON, unknown or ill-typed keys; all are named.
    """
    raw: dict[str, Any] = {} if path is None else read_table(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: expected SECTION.KEY=VALUE")
        *sections, name = key.split(".")
        at = raw
        for number, section in enumerate(sections, 1):
            at = at.setdefault(section, {})
            if not isinstance(at, dict):
                raise ValueError(
                    f"--set {override}: {'.'.join(sections[:number])} is no section, but {at!r}"
                )
        at[name] = _value(text)
    wrong: list[str] = []
    settings = _build(TrainSettings, raw, "", wrong)
    if settings is None or wrong:
        source = "settings" if path is None else str(path)
        raise ValueError("\n".join(f"{source}: {line}" for line in wrong))
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


_Section = TypeVar("_Section")
# A list's type -> what its items become, what they may be in a file, and their name.
_LISTS: dict[Any, tuple[Any, tuple[type, ...], str]] = {
    tuple[int, ...]: (int, (int,), "integers"),
    tuple[float, ...]: (float, (int, float), "numbers"),
    tuple[str, ...]: (str, (str,), "names"),
}


def _build(
    kind: type[_Section], raw: Mapping[str, Any], where: str, wrong: list[str]
) -> _Section | None:
    """``kind`` from ``raw``; what is wrong with it is added to ``wrong``."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{where}{key}"
        hint = hints.get(key)
        if hint is None:
            wrong.append(f"unknown key {name} (known: {', '.join(sorted(hints))})")
        elif dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                values[key] = _build(hint, value, f"{name}.", wrong)  # type: ignore[arg-type]
            else:
                wrong.append(f"{name} must be a section, found {value!r}")
        elif hint in (int, float, str, bool):
            fits = type(value) is hint or (hint is float and type(value) is int)
            if not fits:
                wrong.append(f"{name} must be {hint.__name__}, found {value!r}")
            values[key] = float(value) if fits and hint is float else value
        else:  # a tuple
            of, kinds, kind_name = _LISTS[hint]
            fits = isinstance(value, list) and all(type(item) in kinds for item in value)
            if not fits:
                wrong.append(f"{name} must be a list of {kind_name}, found {value!r}")
            values[key] = tuple(map(of, value)) if fits else ()
    if wrong:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        wrong += str(error).splitlines()
        return None
