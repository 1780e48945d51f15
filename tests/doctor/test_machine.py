"""The doctor's checks of Python, packages, device, threads and variables."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sgl_entropy.doctor import hardware, software
from sgl_entropy.doctor.machine import Cuda, Machine
from sgl_entropy.runtime.v0_5_6.contract.table import TESTED_KERNELS, TESTED_PACKAGES
from tests.doctor.machines import (
    CPU_ENVIRON,
    CPU_PACKAGES,
    GPU_PACKAGES,
    cpu_machine,
    foreign_package,
    gpu_machine,
    machine,
)


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 9, 18), "FAIL"), ((3, 10, 0), "ok"), ((3, 12, 4), "ok"), ((3, 14, 0), "warn")],
)
def test_python(version: tuple[int, int, int], level: str) -> None:
    assert software.check_python(cpu_machine(python=version)).level == level


@pytest.mark.parametrize("found", [GPU_PACKAGES, CPU_PACKAGES])
def test_tested_packages_are_fine(found: dict[str, str]) -> None:
    checks = software.check_packages(gpu_machine(found), TESTED_PACKAGES)
    assert [check.level for check in checks] == ["ok"] * len(TESTED_PACKAGES)


def test_a_missing_package_fails_and_an_untested_one_warns() -> None:
    found = {**GPU_PACKAGES, "torch": "2.8.0"}
    del found["xgrammar"]
    checks = {c.name: c for c in software.check_packages(gpu_machine(found), TESTED_PACKAGES)}
    assert (checks["torch"].level, checks["xgrammar"].level) == ("warn", "FAIL")
    assert "2.9.1 or 2.13.0" in checks["torch"].fix
    assert checks["xgrammar"].fix == 'pip install "xgrammar==0.1.27"'
    assert checks["triton"].level == "ok"


@pytest.mark.parametrize(
    ("version", "level"), [("2.3.5", "ok"), ("2.4.0", "warn"), ("2.10.1", "warn"), (None, "FAIL")]
)
def test_numpy(version: str | None, level: str) -> None:
    found = {} if version is None else {"numpy": version}
    assert software.check_numpy(cpu_machine(found)).level == level


@pytest.mark.parametrize(
    ("make", "version", "level"),
    [
        (gpu_machine, "0.3.19", "ok"),
        (gpu_machine, "0.3.19.post1+cu129", "ok"),
        (gpu_machine, "0.3.18", "warn"),
        (gpu_machine, None, "FAIL"),
        (cpu_machine, None, "ok"),
    ],
)
def test_kernels_are_needed_on_a_gpu_alone(make, version: str | None, level: str) -> None:
    found = {} if version is None else {"sgl-kernel": version}
    assert software.check_kernels(make(found), TESTED_KERNELS).level == level


def test_a_package_named_kernels_is_told_from_the_published_one(tmp_path: Path) -> None:
    foreign = foreign_package(tmp_path / "project")
    published = foreign_package(tmp_path / "site-packages", published=True)
    plain = tmp_path / "root"
    (plain / "kernels" / "ours").mkdir(parents=True)  # no __init__.py: shadows nothing
    found = software.check_shadowing(cpu_machine(path=(foreign, published)))
    assert found.level == "warn"
    assert str(tmp_path / "project" / "kernels") in found.found
    assert software.check_shadowing(cpu_machine(path=(published, foreign))).level == "ok"
    assert software.check_shadowing(cpu_machine(path=(str(plain), published))).level == "ok"
    assert software.check_shadowing(cpu_machine(path=(str(plain),))).level == "ok"


@pytest.mark.parametrize(
    ("made", "launch", "level", "said"),
    [
        (gpu_machine(), True, "ok", "H100"),
        (gpu_machine(environ=CPU_ENVIRON), True, "warn", "will not be used"),
        (cpu_machine(), True, "ok", "CPU engine"),
        (cpu_machine(architecture="aarch64"), True, "FAIL", "x86-64"),
        (cpu_machine(environ={}), False, "warn", "without CUDA"),
        (cpu_machine(environ={}), True, "FAIL", "is not set"),
        (cpu_machine(environ={"SGLANG_USE_CPU_ENGINE": "true"}), False, "FAIL", "exactly 1"),
    ],
)
def test_device(made: Machine, launch: bool, level: str, said: str) -> None:
    check = hardware.check_device(made, launch=launch)
    assert (check.level, said in check.found) == (level, True)


@pytest.mark.parametrize(
    ("made", "level", "said"),
    [
        (cpu_machine(cpu_flags=frozenset({"sse2"})), "warn", "no vector"),
        (gpu_machine(cpu_flags=frozenset()), "ok", "no vector"),
        (cpu_machine(cpu_flags=frozenset({"avx2", "amx_tile"})), "ok", "AVX2, AMX"),
    ],
)
def test_cpu(made: Machine, level: str, said: str) -> None:
    check = hardware.check_cpu(made)
    assert (check.level, said in check.found) == (level, True)


@pytest.mark.parametrize(
    ("threads", "load", "level"),
    [
        ("1", 9.0, "ok"),
        ("2", 0.1, "ok"),
        ("2", 1.5, "warn"),
        ("3", 0.0, "warn"),
        (None, 0.0, "warn"),
        ("0", 0.0, "FAIL"),
        ("two", 0.0, "FAIL"),
    ],
)
def test_threads_on_the_cpu_engine(threads: str | None, load: float, level: str) -> None:
    environ = {"SGLANG_USE_CPU_ENGINE": "1"} | ({"OMP_NUM_THREADS": threads} if threads else {})
    assert hardware.check_threads(cpu_machine(environ=environ, load=load)).level == level


def test_threads_do_not_matter_to_a_gpu() -> None:
    assert hardware.check_threads(gpu_machine()).level == "ok"


@pytest.mark.parametrize(
    ("made", "algorithm", "levels"),
    [
        (cpu_machine(), "EDSD", {"torch.compile": "ok", "overlap scheduling": "ok"}),
        (cpu_machine(environ={"SGLANG_USE_CPU_ENGINE": "1"}), None, {"torch.compile": "warn"}),
        (gpu_machine(), "EDSD", {"overlap scheduling": "ok"}),
        (gpu_machine(environ={"SGLANG_ENABLE_SPEC_V2": "0"}), "EDSD", {"overlap scheduling": "ok"}),
        (
            gpu_machine(environ={"SGLANG_ENABLE_SPEC_V2": "True"}),
            "EDSD",
            {"overlap scheduling": "FAIL"},
        ),
        (
            gpu_machine(environ={"SGLANG_ENABLE_SPEC_V2": "1"}),
            "EAGLE3",
            {"overlap scheduling": "warn"},
        ),
        (
            cpu_machine(environ={**CPU_ENVIRON, "SGLANG_ENABLE_SPEC_V2": "1"}),
            "EAGLE3",
            {"overlap scheduling": "FAIL"},
        ),
    ],
)
def test_variables(made: Machine, algorithm: str | None, levels: dict[str, str]) -> None:
    found = {c.name: c.level for c in hardware.check_variables(made, algorithm)}
    assert {name: found[name] for name in levels} == levels
    assert ("torch.compile" in found) == made.on_cpu


def site_with_torch(folder: Path, build: str, code: str) -> Path:
    """A torch that is only what the probe asks of it."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"cuda: str = {build}\n")
    (folder / "torch" / "__init__.py").write_text(code)
    return folder


FAKE = """
class cuda:
    is_available = staticmethod(lambda: {found})
    device_count = staticmethod(lambda: 2)
    get_device_name = staticmethod(lambda i: f"card {{i}}")
"""


@pytest.mark.parametrize(
    ("build", "code", "expected"),
    [
        ("'12.8'", FAKE.format(found=True), Cuda(("card 0", "card 1"))),
        ("'12.8'", FAKE.format(found=False), Cuda((), "torch sees no CUDA device")),
        (
            "'12.8'",
            "raise OSError('libcudart is missing')",
            Cuda((), "torch cannot be imported: OSError: libcudart is missing"),
        ),
        # A build without CUDA is not imported at all.
        ("None", "raise OSError", Cuda((), "this torch is a build without CUDA")),
    ],
)
def test_the_device_is_asked_in_a_process_of_its_own(
    tmp_path: Path, build: str, code: str, expected: Cuda
) -> None:
    site = site_with_torch(tmp_path, build, code)
    assert Machine.here(dict(os.environ), site).cuda == expected


def test_facts_of_this_machine(tmp_path: Path) -> None:
    info = tmp_path / "xgrammar-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: xgrammar\nVersion: 9.9.9\n")
    here = Machine.here({}, tmp_path)
    # Beside SGLang first, then this Python.
    assert here.version("xgrammar") == "9.9.9"
    assert here.version("pytest") == pytest.__version__
    assert here.version("no-such-distribution-anywhere") is None
    assert here.python == sys.version_info[:3]
    assert here.path[0] == os.getcwd()
    assert 1 <= here.cores <= (os.cpu_count() or 1)


def test_no_torch_is_no_device() -> None:
    assert machine({}, Cuda((), "torch is not installed")).on_cpu
