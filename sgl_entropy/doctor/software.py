"""Python, the packages that SGLang needs, and what could shadow them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from sgl_entropy.doctor.diagnosis import Check, fail, ok, warn
from sgl_entropy.doctor.machine import Machine

_TESTED_PYTHONS = ((3, 10), (3, 11), (3, 12))


def check_python(machine: Machine) -> Check:
    version = ".".join(map(str, machine.python))
    found = f"{version} ({machine.executable})"
    if machine.python < _TESTED_PYTHONS[0]:
        return fail("python", found, "SGLang needs Python 3.10 or newer; use 3.11")
    if machine.python[:2] not in _TESTED_PYTHONS:
        return warn("python", found, "not tested with SGLang v0.5.6.post2; use Python 3.11")
    return ok("python", found)


def check_packages(machine: Machine, tested: Mapping[str, tuple[str, ...]]) -> Iterator[Check]:
    """Each is installed, in a version that is in ``tested`` (distribution -> versions)."""
    for name, versions in tested.items():
        version = machine.version(name)
        wanted = " or ".join(versions)
        if version is None:
            yield fail(name, "not installed", f'pip install "{name}=={versions[0]}"')
        elif version.split("+", 1)[0] in versions:
            yield ok(name, version)
        else:
            yield warn(name, version, f"tested with {wanted}; install that if anything fails")


def check_numpy(machine: Machine) -> Check:
    version = machine.version("numpy")
    if version is None:
        return fail("numpy", "not installed", 'pip install "numpy<2.4"')
    if _numbers(version) >= (2, 4):
        fix = (
            'Triton 3.5.1\'s interpreter fails on loops with 2.4 and newer: pip install "numpy<2.4"'
        )
        return warn("numpy", version, fix)
    return ok("numpy", version)


def check_kernels(machine: Machine, tested: str) -> Check:
    """``sgl_kernel``: SGLang's compiled operators; the CPU engine does not need them."""
    name = "sgl_kernel"
    version = machine.version("sgl-kernel")
    if version is None and machine.on_cpu:
        return ok(name, "not installed; the CPU engine does not need it")
    if version is None:
        return fail(name, "not installed", f'pip install "sgl-kernel=={tested}"')
    if version.split("+", 1)[0].split(".post", 1)[0] != tested:
        return warn(name, version, f"SGLang was released with {tested}; install that one")
    return ok(name, version)


def check_shadowing(machine: Machine) -> Check:
    """transformers takes any package named ``kernels`` for the one on PyPI."""
    name = "import path"
    spec = PathFinder.find_spec("kernels", list(machine.path))
    if spec is None or spec.origin is None:  # a folder without __init__.py shadows nothing
        return ok(name, "nothing shadows the PyPI package `kernels`")
    found = Path(spec.origin)
    package = found.parent if found.name == "__init__.py" else found
    beside = package.parent
    if any(beside.glob("kernels-*.dist-info")) or any(beside.glob("kernels-*.egg-info")):
        return ok(name, f"`kernels` is the PyPI package in {beside}")
    return warn(
        name,
        f"{package} shadows the PyPI package `kernels`, which transformers looks for",
        f"rename it, or start the server from another folder than {beside}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
