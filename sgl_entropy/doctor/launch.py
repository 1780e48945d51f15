"""Conflicts among a launch command's flags, found before anything is started."""

from __future__ import annotations

import argparse
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.doctor.diagnosis import Check, fail, ok, warn
from sgl_entropy.doctor.flags import LaunchFlags
from sgl_entropy.doctor.machine import Machine
from sgl_entropy.drafter.check import algorithm_mismatch
from sgl_entropy.drafter.checkpoint import read_config

_OURS = ("EAGLE", "EAGLE3", "EDSD")
_SHAPE = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")


def check_launch(flags: LaunchFlags, machine: Machine) -> Iterator[Check]:
    """Everything that the flags show without starting the server."""
    algorithm = flags.speculative_algorithm
    problems = [
        *_paths(flags),
        *_config_file(flags),
        *(_speculation(flags, algorithm) if algorithm in _OURS else ()),
        *(_cpu_engine(flags, algorithm in _OURS) if machine.on_cpu else ()),
        *_port(flags),
    ]
    yield from problems
    if not problems:
        yield ok("flags", f"{flags.count} given, no conflict among them")


def _paths(flags: LaunchFlags) -> Iterator[Check]:
    """A path that looks like a folder's must be one; other values may be names of repositories."""
    for name in ("model_path", "speculative_draft_model_path"):
        path = getattr(flags, name)
        if path and path.startswith(("/", ".", "~")) and not Path(path).is_dir():
            yield fail(_flag(name), f"{path}: no such folder", "give an existing folder")


def _config_file(flags: LaunchFlags) -> Iterator[Check]:
    if flags.config:
        found = f"{flags.config}: the flags in this file are not examined"
        yield warn("--config", found, "give them on the command line to have them checked")


def _speculation(flags: LaunchFlags, algorithm: str) -> Iterator[Check]:
    if flags.enable_lora or flags.lora_paths:
        yield fail(
            "--enable-lora",
            f"LoRA with {algorithm}: SGLang v0.5.6 serves LoRA with NGRAM speculation only",
            "drop the LoRA flags, or serve without speculation",
        )
    if flags.pipeline_parallel_size > 1:
        yield fail(
            "--pp-size",
            f"{flags.pipeline_parallel_size} stages: SGLang does not speculate across them",
            "use --tp-size instead",
        )
    if flags.enable_mixed_chunk:
        yield warn("--enable-mixed-chunk", "SGLang turns it off under speculation", "leave it out")
    if algorithm == "EDSD":
        yield from _edsd(flags)
    path = flags.speculative_draft_model_path
    if path and Path(path).is_dir():
        yield from _drafter(flags, algorithm, path)


def _edsd(flags: LaunchFlags) -> Iterator[Check]:
    if not flags.speculative_draft_model_path:
        yield fail(
            "--speculative-draft-model-path",
            "not given: EDSD needs a drafter",
            "give the drafter's folder",
        )
    if flags.quantization:
        yield warn(
            "--quantization",
            f"{flags.quantization} also reaches the drafter; EDSD's is served unquantized",
            "leave it out if the server refuses the drafter",
        )
    if flags.speculative_token_map:
        yield warn("--speculative-token-map", "EDSD reads d2t from its checkpoint", "leave it out")


def _drafter(flags: LaunchFlags, algorithm: str, path: str) -> Iterator[Check]:
    """The drafter under this algorithm, and a draft that can exist."""
    try:
        mismatch = algorithm_mismatch(path, algorithm)
        if mismatch is not None:
            yield fail("--speculative-algorithm", mismatch, "change the flag or the drafter")
            return
        if algorithm == "EDSD":
            _check_shape(flags, path)
    except DrafterError as error:
        yield fail("draft", str(error), "change the flags of the draft")


def _check_shape(flags: LaunchFlags, path: str) -> None:
    """The server's own check of steps, branches and tokens.

    Raises:
        DrafterError: no such draft can exist, or the drafter cannot be read.
    """
    # Imported late: that module belongs to the served SGLang; the doctor also runs without it.
    from sgl_entropy.runtime.v0_5_6.flags import check_draft_shape

    shape = argparse.Namespace(**{name: getattr(flags, name) for name in _SHAPE})
    if flags.speculative_num_steps is None:
        given = [_flag(name) for name in _SHAPE[1:] if getattr(flags, name) is not None]
        if given:
            raise DrafterError(f"{' and '.join(given)} without {_flag(_SHAPE[0])}")
        return
    check_draft_shape(shape, read_config(path))


def _cpu_engine(flags: LaunchFlags, speculates: bool) -> Iterator[Check]:
    if flags.device not in (None, "cpu"):
        yield fail(
            "--device", f"{flags.device}, but there is only the CPU engine", "use --device cpu"
        )
    backend = flags.attention_backend
    if backend != "torch_native":
        found = f"{backend or 'not given'}: the CPU engine serves torch_native"
        fix = "use --attention-backend torch_native"
        # Without the flag, SGLang falls back to it on a CPU without AMX.
        yield (
            fail("--attention-backend", found, fix)
            if backend
            else warn("--attention-backend", found, fix)
        )
    if not flags.sleep_on_idle:
        found = "not given: an idle scheduler spins at 100 % of a core"
        yield warn("--sleep-on-idle", found, "add --sleep-on-idle")
    if flags.tensor_parallel_size > 1:
        found = f"{flags.tensor_parallel_size}: not tested on the CPU engine"
        yield warn("--tp-size", found, "use --dp-size, or 1")
    if not speculates:
        return
    if flags.page_size != 1:
        found = f"{flags.page_size}: speculation on the CPU engine serves pages of one token"
        yield fail("--page-size", found, "use --page-size 1 or leave it out")
    for end in ("single", "acc"):
        name = f"speculative_accept_threshold_{end}"
        if getattr(flags, name) != 1.0:
            found = f"{getattr(flags, name)}: the CPU engine accepts exactly"
            yield fail(_flag(name), found, "leave it out")


def _port(flags: LaunchFlags) -> Iterator[Check]:
    """Whether the port is free now."""
    host, port = flags.host, flags.port
    if not 0 < port < 65536:
        yield fail("--port", f"{port} is no port", "use one of 1024 to 65535")
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server binds: a port of which only closed connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            used = error.errno == errno.EADDRINUSE
            found = f"{host}:{port}: {'in use' if used else error.strerror or error}"
            yield fail("--port", found, "stop what listens there, or choose another --port")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
