"""All checks in order; a check whose premises failed is left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgl_entropy import patching
from sgl_entropy.doctor import hardware, host, software
from sgl_entropy.doctor.diagnosis import Check, Diagnosis, Level, fail, ok, warn
from sgl_entropy.doctor.flags import FlagError, LaunchFlags, parse_flags, split_command
from sgl_entropy.doctor.launch import check_launch
from sgl_entropy.doctor.machine import Machine
from sgl_entropy.drafter.check import check_drafter
from sgl_entropy.drafter.checkpoint import inspect_checkpoint
from sgl_entropy.patching import PatchError, SglangInstall
from sgl_entropy.runtime.v0_5_6.contract import table

_LEVELS: Mapping[str, Level] = {"ok": "ok", "warn": "warn", "error": "FAIL"}

MakeMachine = Callable[[Mapping[str, str], Path | None], Machine]


@dataclass(frozen=True)
class ExaminationRequest:
    """What to examine besides the machine.

    Attributes:
        sglang: folder of SGLang; None = the one that this Python would import.
        drafter, target: folders; None = those of the launch flags, where they name folders.
        launch: words of a launch command (``NAME=VALUE`` words first, then the server's flags);
            empty = no command is examined.
    """

    sglang: str | None = None
    drafter: str | None = None
    target: str | None = None
    launch: tuple[str, ...] = ()


def examine(request: ExaminationRequest, machine_for: MakeMachine = Machine.here) -> Diagnosis:
    """Run every check that can be run.

    Args:
        machine_for: (environment of the server, folder that holds SGLang) -> its machine.
    """
    variables, words = split_command(request.launch)
    install: SglangInstall | PatchError
    try:
        install = patching.find_sglang(request.sglang)
        site: Path | None = install.root.parent
    except PatchError as error:
        install, site = error, None
    machine = machine_for({**os.environ, **variables}, site)
    return Diagnosis(tuple(_checks(request, words, install, machine)))


def _checks(
    request: ExaminationRequest,
    words: list[str],
    install: SglangInstall | PatchError,
    machine: Machine,
) -> Iterator[Check]:
    flags: LaunchFlags | None = None
    refused = ""
    if words and isinstance(install, SglangInstall):
        try:
            flags = LaunchFlags.of(parse_flags(install.root, words))
        except FlagError as error:
            refused = str(error)
    algorithm = flags.speculative_algorithm if flags else None

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
    yield from _pair(request, flags or LaunchFlags())


def _pair(request: ExaminationRequest, flags: LaunchFlags) -> Iterator[Check]:
    """The drafter, compared with the target if one is named."""
    drafter = request.drafter or _folder(flags.speculative_draft_model_path)
    target = request.target or _folder(flags.model_path)
    if drafter is None:
        if request.target is not None:
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
