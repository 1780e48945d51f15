"""The device, the CPU's instruction sets, threads, and the variables that set them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sgl_entropy.doctor.diagnosis import Check, fail, ok, warn
from sgl_entropy.doctor.machine import Machine

_TRUE = ("true", "1", "yes", "y")  # as SGLang reads its own variables
_ENGINE = "SGLANG_USE_CPU_ENGINE"


def check_device(machine: Machine, *, launch: bool) -> Check:
    """The device that a server would use. ``launch``: flags are given, so it has to be there."""
    name = "device"
    value = machine.environ.get(_ENGINE)
    devices = machine.cuda.devices
    if machine.cpu_engine_asked:
        if machine.architecture.lower() not in ("x86_64", "amd64"):
            found = f"{_ENGINE}=1 on {machine.architecture}: SGLang's CPU engine is for x86-64"
            return fail(name, found, "use an x86-64 machine or a CUDA device")
        if devices:
            found = f"{_ENGINE}=1, so that {', '.join(devices)} will not be used"
            return warn(name, found, f"unset {_ENGINE} to serve on the GPU")
        return ok(name, f"CPU engine ({_ENGINE}=1)")
    if devices:
        return ok(name, f"{len(devices)} x {devices[0]}" if len(devices) > 1 else devices[0])
    found = f"no CUDA device ({machine.cuda.reason}) and {_ENGINE} is "
    found += "not set" if value is None else f"{value!r}, where SGLang wants exactly 1"
    fix = f"start the server with {_ENGINE}=1 --device cpu --attention-backend torch_native"
    return fail(name, found, fix) if launch or value not in (None, "0") else warn(name, found, fix)


def check_cpu(machine: Machine) -> Check:
    """The instruction sets that make the CPU engine's matrix products fast."""
    name = "cpu"
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16"}
    sets = [label for flag, label in known.items() if flag in machine.cpu_flags]
    sets += ["AMX"] if "amx_tile" in machine.cpu_flags else []
    found = f"{machine.cores} cores, {', '.join(sets) or 'no vector instructions known'}"
    if not machine.on_cpu or sets:
        return ok(name, found)
    return warn(name, found, "the CPU engine will be slow without AVX2 or newer")


def check_threads(machine: Machine) -> Check:
    """OMP_NUM_THREADS compared with the number of cores, if the CPU engine computes."""
    name = "threads"
    value = machine.environ.get("OMP_NUM_THREADS")
    if not machine.on_cpu:
        return ok(name, f"OMP_NUM_THREADS {value or 'not set'}; the GPU computes")
    if value is None:
        fix = f"set OMP_NUM_THREADS (1 to {machine.cores}): more threads than idle cores can be "
        return warn(name, "OMP_NUM_THREADS is not set", fix + "20 times slower")
    if not value.isdigit() or int(value) < 1:
        found = f"OMP_NUM_THREADS={value!r} is not a whole number from 1"
        return fail(name, found, f"set it to 1 to {machine.cores}")
    threads, found = int(value), f"OMP_NUM_THREADS={value} on {machine.cores} cores"
    if threads > machine.cores:
        return warn(name, found, f"at most {machine.cores}: threads that wait for a core spin")
    if threads > 1 and machine.load is not None and machine.load + threads > machine.cores + 0.5:
        found += f", of which {machine.load:.1f} are busy"
        return warn(name, found, "fewer threads, or an idle machine: 2 on busy cores can be slower")
    return ok(name, found)


def check_variables(machine: Machine, algorithm: str | None) -> Iterator[Check]:
    """Environment variables that break a server with our patches."""
    if machine.on_cpu:
        name, value = "torch.compile", machine.environ.get("TORCHDYNAMO_DISABLE")
        if value == "1":
            yield ok(name, "off (TORCHDYNAMO_DISABLE=1)")
        else:
            found = f"TORCHDYNAMO_DISABLE is {'not set' if value is None else repr(value)}"
            yield warn(name, found, "set TORCHDYNAMO_DISABLE=1, or the first steps take minutes")
    name = "overlap scheduling"
    value = machine.environ.get("SGLANG_ENABLE_SPEC_V2", "")
    if value.lower() not in _TRUE:
        yield ok(name, "off under speculation (SGLANG_ENABLE_SPEC_V2 is not set)")
        return
    broken = algorithm == "EDSD" or (algorithm is not None and machine.on_cpu)
    level: Literal["FAIL", "warn"] = "FAIL" if broken else "warn"
    found = f"SGLANG_ENABLE_SPEC_V2={value}: SGLang's beta worker serves neither EDSD nor the "
    yield Check(level, name, found + "CPU engine", "unset SGLANG_ENABLE_SPEC_V2")
