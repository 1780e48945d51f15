"""All checks in their order, as far as what came before lets them run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy import patching
from sgl_entropy.doctor import hardware, host, software
from sgl_entropy.doctor.flags import FlagError, parse_flags, split_command
from sgl_entropy.doctor.launch import check_launch
from sgl_entropy.doctor.machine import Machine
from sgl_entropy.doctor.report import Check, Report, fail, ok, warn
from sgl_entropy.drafter.check import check_drafter
from sgl_entropy.drafter.checkpoint import inspect_checkpoint
from sgl_entropy.patching import PatchError, SglangInstall
from sgl_entropy.runtime.v0_5_6.contract import table

_LEVELS: Mapping[str, Any] = {"ok": "ok", "warn": "warn", "error": "FAIL"}

MakeMachine = Callable[[Mapping[str, str], Path | None], Machine]


@dataclass(frozen=True)
class Question:
    """What to examine beside the machine.

    Attributes:
        sglang: folder of SGLang; None = the one that this Python would import.
        drafter, target: folders; None = those of the launch flags, where they name folders.
        launch: words of a launch command (``NAME=VALUE`` words first, then the server's flags);
            empty = none is examined.
    """

    sglang: str | None = None
    drafter: str | None = None
    target: str | None = None
    launch: tuple[str, ...] = ()


def examine(question: Question, machine_for: MakeMachine = Machine.here) -> Report:
    """Run every check that can be run.

    Args:
        machine_for: (environment of the server, folder that holds SGLang) -> its machine.
    """
    variables, words = split_command(question.launch)
    install: SglangInstall | PatchError
    try:
        install = patching.find_sglang(question.sglang)
        site: Path | None = install.root.parent
    except PatchError as error:
        install, site = error, None
    machine = machine_for({**os.environ, **variables}, site)
    return Report(tuple(_checks(question, words, install, machine)))


def _checks(
    question: Question, words: list[str], install: SglangInstall | PatchError, machine: Machine
) -> Iterator[Check]:
    flags: dict[str, Any] | None = None
    refused = ""
    if words and isinstance(install, SglangInstall):
        try:
            flags = parse_flags(install.root, words)
        except FlagError as error:
            refused = str(error)
    algorithm = (flags or {}).get("speculative_algorithm")

    yield software.check_python(machine)
    yield host.check_sglang(install)
    yield from software.check_packages(machine, table.TESTED_PACKAGES)
    yield software.check_numpy(machine)
    yield software.check_kernels(machine, table.TESTED_KERNELS)
    yield software.check_shadowing(machine)
    if isinstance(install, SglangInstall) and install.version == table.SGLANG:
        yield from host.check_patches(install)
        count = len(table.contract())
        yield from host.check_functions(install, table.check_contract, count)
    yield hardware.check_device(machine, launch=bool(words))
    yield hardware.check_cpu(machine)
    yield hardware.check_threads(machine)
    yield from hardware.check_variables(machine, algorithm)
    if refused:
        yield fail("flags", refused, "see `python -m sglang.launch_server --help`")
    if flags is not None:
        yield from check_launch(flags, machine)
    yield from _pair(question, flags or {})


def _pair(question: Question, flags: Mapping[str, Any]) -> Iterator[Check]:
    """The drafter, against the target where one is known."""
    drafter = question.drafter or _folder(flags.get("speculative_draft_model_path"))
    target = question.target or _folder(flags.get("model_path"))
    if drafter is None:
        if question.target is not None:
            yield fail("drafter", "--target without a drafter", "add --drafter DIR")
        return
    findings = tuple(inspect_checkpoint(drafter))
    if target is not None:
        try:
            findings = check_drafter(drafter, target).findings
        except ImportError as error:  # its values are read with torch
            found = f"only its tensors' names and shapes were checked: {error}"
            yield warn("drafter", found, "run this with the Python that has torch")
    for finding in findings:
        name = f"drafter: {finding.name}"
        yield Check(_LEVELS[finding.level], name, finding.detail, finding.fix)
    if not findings:
        yield ok("drafter", f"{drafter}: every tensor is accounted for")


def _folder(path: str | None) -> str | None:
    return path if path and Path(path).is_dir() else None
