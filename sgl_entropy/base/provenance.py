"""Where a result comes from: command, commit, versions, machine, date."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sgl_entropy.base.identity import Identity

PACKAGES = ("sgl-entropy", "sglang", "torch", "transformers", "triton", "numpy", "xgrammar")
ROOT = Path(__file__).resolve().parents[2]


def provenance(threads: int, inputs: dict[str, Path | None] | None = None) -> dict[str, Any]:
    """The facts that someone needs to repeat a measurement on this machine.

    ``threads``: compute threads of the measured server. ``inputs``: folders of weights that were
    measured, recorded by name and by their :class:`Identity`, the same digest that a calibration
    holds. (Older results have ``weights_sha256`` there instead: the first digits of the SHA-256 of
    the safetensors files.) Paths of this machine are left out.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "commit": commit(),
        "patches": patches_hash(),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.machine()}",
            "load_before": round(os.getloadavg()[0], 2),
            **({"gpus": names} if (names := gpus()) else {}),
        },
        "threads": threads,
        "inputs": {
            name: {"folder": folder.name, "identity": Identity.of(folder).sha256}
            for name, folder in (inputs or {}).items()
            if folder is not None
        },
    }


def footer(facts: dict[str, Any]) -> str:
    """The facts of ``provenance`` as the last paragraph of a page."""
    machine = facts["machine"]
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    return (
        f"Measured {facts['date']} at commit {facts['commit']} (patch series "
        f"{facts['patches']}) with `{facts['command']}` on {machine['cpu']}, {machine['cores']} "
        f"cores{''.join(', ' + name for name in machine.get('gpus', []))}, "
        f"{facts['threads']} compute thread(s), load before {machine['load_before']}. "
        f"Versions: {versions}."
    )


def command_line(words: list[str]) -> str:
    """The command as typed, with every absolute path cut to its last part."""
    shown = [Path(words[0]).name]
    for word in words[1:]:
        flag, equals, value = word.rpartition("=")
        quote = '"' if value[:1] == '"' else ""
        path = value.strip('"')
        shown.append(
            flag + equals + (quote + Path(path).name + quote if path.startswith("/") else value)
        )
    return shlex.join(shown)


def versions() -> dict[str, str]:
    """Installed versions, read from metadata: nothing heavy is imported."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def commit() -> str:
    """The checkout's commit, with ``-dirty`` where tracked files differ from it.

    ``$SGL_ENTROPY_COMMIT`` names it where the files were copied without their history.
    """
    if named := os.environ.get("SGL_ENTROPY_COMMIT"):
        return named
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def patches_hash() -> str:
    """One hash over the patch series in this checkout, file by file in order of name."""
    files = sorted((ROOT / "patches").glob("*/*.patch"))
    if not files:
        return "none found"
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def served_hash() -> str:
    """One hash over all of this checkout that decides what a server answers: ours and patches."""
    ours = ROOT / "sgl_entropy"
    served = ("runtime", "serving", "drafter", "verify", "target", "checkpoint")
    rooms = (ROOT / "patches", *(ours / name for name in served))
    files = [file for room in rooms for file in (*room.rglob("*.patch"), *room.rglob("*.py"))]
    digest = hashlib.sha256()
    for file in sorted([*files, *ours.glob("entropy.py")]):
        name = file.relative_to(ROOT).as_posix()
        digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def gpus() -> list[str]:
    """The GPUs' names, by NVIDIA's own tool; none where it is missing."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def cpu_model() -> str:
    """The processor's name as Linux gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
