"""The facts that the checks need: this process, its Python, its CPU and its GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# Importing torch from a cold disk is slow; longer than this means a broken driver.
_PROBE_SECONDS = 120
_PROBE = """
import json, torch
found = torch.cuda.is_available()
count = torch.cuda.device_count() if found else 0
print(json.dumps([torch.cuda.get_device_name(i) for i in range(count)]))
"""


@dataclass(frozen=True)
class Cuda:
    """CUDA devices by name; ``reason`` says why there are none."""

    devices: tuple[str, ...]
    reason: str = ""


@dataclass
class Machine:
    """Everything that is looked up outside SGLang's folder; tests replace the facts.

    Attributes:
        path: folders from which a server started here imports, the current one first.
        site: the folder that holds SGLang; packages are looked for there first.
        load: processes that ran in the last minute, on average; None = the system does not say.
        installed, probe: replacements of the look-ups in packages and on the device.
    """

    environ: Mapping[str, str]
    path: tuple[str, ...]
    site: Path | None
    python: tuple[int, int, int] = sys.version_info[:3]
    executable: str = sys.executable
    architecture: str = field(default_factory=platform.machine)
    cores: int = 1
    load: float | None = None
    cpu_flags: frozenset[str] = frozenset()
    installed: Callable[[str], str | None] | None = None
    probe: Callable[[], Cuda] | None = None

    @classmethod
    def here(cls, environ: Mapping[str, str], site: Path | None) -> Machine:
        """This machine, for a server started with ``environ`` and the SGLang in ``site``."""
        return cls(
            environ=environ,
            # `python -m` puts the current folder in front, whatever this process was started by.
            path=(os.getcwd(), *sys.path),
            site=site,
            cores=len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            cpu_flags=_cpu_flags(Path("/proc/cpuinfo")),
        )

    def version(self, distribution: str) -> str | None:
        """The version of a distribution beside SGLang or in this Python; None = not installed."""
        if self.installed is not None:
            return self.installed(distribution)
        folders = ([str(self.site)] if self.site else []) + list(sys.path)
        found = importlib.metadata.distributions(name=distribution, path=folders)
        return next((each.version for each in found), None)

    @cached_property
    def cuda(self) -> Cuda:
        """The CUDA devices that torch sees; torch is imported in a process of its own."""
        return _probe(self) if self.probe is None else self.probe()

    @property
    def cpu_engine_asked(self) -> bool:
        """SGLang's own test: the variable must be exactly 1."""
        return self.environ.get("SGLANG_USE_CPU_ENGINE") == "1"

    @property
    def on_cpu(self) -> bool:
        """Whether a server started here runs on the CPU engine, by choice or for lack of a GPU."""
        return self.cpu_engine_asked or not self.cuda.devices


def _cpu_flags(cpuinfo: Path) -> frozenset[str]:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def _probe(machine: Machine) -> Cuda:
    folders = ([machine.site] if machine.site else []) + [Path(p) for p in sys.path]
    source = next((p for f in folders if (p := f / "torch" / "version.py").is_file()), None)
    if source is None:
        return Cuda((), "torch is not installed")
    # Only for a CUDA (or ROCm) build is the import worth its seconds.
    text = source.read_text(encoding="utf-8")
    if not re.search(r"""^(cuda|hip)\b[^=]*=\s*["']""", text, re.MULTILINE):
        return Cuda((), "this torch is a build without CUDA")
    environ = dict(machine.environ)
    if machine.site:
        environ["PYTHONPATH"] = os.pathsep.join(
            [str(machine.site), *filter(None, [environ.get("PYTHONPATH")])]
        )
    try:
        done = subprocess.run(
            [machine.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=environ,
        )
    except subprocess.TimeoutExpired:
        return Cuda((), f"torch did not answer within {_PROBE_SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Cuda((), f"torch cannot be imported: {last}")
    devices = tuple(json.loads(done.stdout.strip().splitlines()[-1]))
    return Cuda(devices, "" if devices else "torch sees no CUDA device")
