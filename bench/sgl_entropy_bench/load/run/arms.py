"""The arms of a load test: running servers, or commands that start them in turn."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_entropy.base.table_file import read_table
from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.load.run.endpoint import Endpoint
from sgl_entropy_bench.server.launch import Server, free_port


@dataclass(frozen=True)
class LoadArm:
    """One arm: ``url`` of a running server, or the ``command`` that starts one ({port} in it)."""

    name: str
    url: str = ""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 600.0

    def shown(self) -> str:
        """The command as a result file has it: paths by their last part."""
        words = (Path(word).name if "/" in word else word for word in self.command)
        return shlex.join(words)


def parse_arms(text: str) -> tuple[LoadArm, ...]:
    """``none=URL,edsd=URL``.

    Raises:
        ValueError: another form, no URL, or a name twice.
    """
    arms = []
    for part in text.split(","):
        name, equals, url = part.strip().partition("=")
        if not equals or not name or not url:
            raise ValueError(
                f"--arms {text}: expected NAME=URL[,NAME=URL...]; an arms file goes to --launch"
            )
        Client.from_url(url)
        arms.append(LoadArm(_name(name), url=url))
    _distinct(arms, "--arms")
    return tuple(arms)


def read_arms(path: Path) -> tuple[LoadArm, ...]:
    """The arms of an arms file, whose format bench/README.md describes.

    Raises:
        ValueError: not readable as such, unknown keys, or values of another type.
    """
    return arms_of(path, read_table(path))


def arms_of(path: Path, raw: Mapping[str, Any]) -> tuple[LoadArm, ...]:
    """The arms of a table that was read from ``path``. Raises ValueError as ``read_arms``."""
    wrong = sorted(set(raw) - {"command", "environment", "ready_timeout_s", "arms"})
    if wrong:
        raise ValueError(f"{path}: unknown keys {', '.join(wrong)}")
    command = _words(path, "command", raw.get("command"))
    if not any("{port}" in word for word in command):
        raise ValueError(f"{path}: command must hold {{port}} where the port goes")
    shared = _environment(path, raw.get("environment", {}))
    ready = raw.get("ready_timeout_s", 600.0)
    if not isinstance(ready, (int, float)) or not ready > 0:
        raise ValueError(f"{path}: ready_timeout_s must be a number above 0, found {ready!r}")
    tables = raw.get("arms")
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{path}: expected at least one [[arms]]")
    arms = []
    for number, one in enumerate(tables):
        at = f"arms[{number}]"
        if not isinstance(one, dict):
            raise ValueError(f"{path}: {at} must be a table")
        if wrong := sorted(set(one) - {"name", "flags", "environment"}):
            raise ValueError(f"{path}: {at}: unknown keys {', '.join(wrong)}")
        if not isinstance(one.get("name"), str):
            raise ValueError(f"{path}: {at} needs a name")
        flags = _words(path, f"{at}.flags", one.get("flags", []))
        extra = _environment(path, one.get("environment", {}))
        arms.append(
            LoadArm(
                _name(one["name"]),
                command=tuple(
                    os.path.expanduser(word.replace("{here}", str(path.resolve().parent)))
                    for word in command + flags
                ),
                environment={**shared, **extra},
                ready_timeout_s=float(ready),
            )
        )
    _distinct(arms, str(path))
    return tuple(arms)


@contextlib.contextmanager
def opened(
    spec: LoadArm,
    api: str,
    tokenizer: Path | None,
    log: Path,
    waiting: Callable[[float], None] = lambda _: None,
) -> Iterator[Endpoint]:
    """The arm's server, started first and stopped afterwards where the arm is a command.

    Raises:
        StartError, ServerError, ValueError.
    """
    if spec.url:
        yield Endpoint.connect(spec.name, spec.url, api, tokenizer)
        return
    port = free_port()
    words = [word.replace("{port}", str(port)) for word in spec.command]
    if words[0] == "python":
        words[0] = sys.executable
    server = Server(
        spec.name, words, port, log, {**os.environ, **spec.environment}, spec.ready_timeout_s
    )
    with server.start(waiting):
        target = Endpoint.connect(spec.name, f"http://127.0.0.1:{port}", api, tokenizer)
        yield target
        if not server.alive():
            raise ServerError(f"the {spec.name} server ended while it was measured: see {log}")


def _words(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise ValueError(f"{path}: {name} must be a string or a list of words")


def _environment(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, (str, int)) for v in value.values()):
        raise ValueError(f"{path}: environment must hold strings")
    return {str(key): str(text) for key, text in value.items()}


def _name(name: str) -> str:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"an arm's name holds letters, digits, - and _; found {name!r}")
    return name


def _distinct(arms: list[LoadArm], where: str) -> None:
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: every arm needs a name of its own")
