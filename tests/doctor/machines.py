"""Machines that are not this one, for the doctor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_entropy.doctor.machine import Cuda, Machine

GPU_PACKAGES = {
    "torch": "2.9.1",
    "transformers": "4.57.1",
    "triton": "3.5.1",
    "xgrammar": "0.1.27",
    "numpy": "2.3.5",
    "sgl-kernel": "0.3.19",
}
CPU_PACKAGES = {
    **{name: version for name, version in GPU_PACKAGES.items() if name != "sgl-kernel"},
    "torch": "2.13.0+cpu",
}
CPU_ENVIRON = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def machine(packages: Mapping[str, str], cuda: Cuda, **facts: Any) -> Machine:
    facts = {
        "environ": {},
        "path": (),
        "site": None,
        "python": (3, 11, 7),
        "architecture": "x86_64",
        "cores": 2,
        "load": 0.1,
        "cpu_flags": frozenset({"avx2"}),
    } | facts
    return Machine(installed=packages.get, probe=lambda: cuda, **facts)


def gpu_machine(packages: Mapping[str, str] = GPU_PACKAGES, **facts: Any) -> Machine:
    return machine(packages, Cuda(("NVIDIA H100",)), **facts)


def cpu_machine(packages: Mapping[str, str] = CPU_PACKAGES, **facts: Any) -> Machine:
    facts = {"environ": CPU_ENVIRON} | facts
    return machine(packages, Cuda((), "this torch is a build without CUDA"), **facts)


def foreign_package(folder: Path, *, published: bool = False) -> str:
    """A folder with a package ``kernels`` in it, installed from an index or not."""
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").touch()
    if published:
        (folder / "kernels-0.9.0.dist-info").mkdir()
    return str(folder)
