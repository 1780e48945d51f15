"""SGLang itself: its version, our patches in it, and everything that we use of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sgl_entropy import patching
from sgl_entropy.apiuse.uses import Mismatch
from sgl_entropy.doctor.diagnosis import Check, fail, ok
from sgl_entropy.patching import SglangInstall, manifest

# More lines of one kind do not help to see what is wrong.
_SHOWN = 12


def check_sglang(install: SglangInstall | patching.PatchError) -> Check:
    """It is installed, in a version that we ship patches for."""
    if isinstance(install, patching.PatchError):
        fix = "install it beside sgl-entropy, or name its folder with --sglang DIR"
        return fail("sglang", str(install), fix)
    found = f"{install.version} in {install.root}"
    supported = manifest.supported_versions()
    if install.version in supported:
        return ok("sglang", found)
    fix = f'pip install "sglang=={supported[-1]}"' if supported else "reinstall sgl-entropy"
    return fail("sglang", f"{found}; supported: {', '.join(supported) or 'none'}", fix)


def check_patches(install: SglangInstall) -> Iterator[Check]:
    """The state of our patches, down to every file's hash.

    An apply or revert that was cut short is undone first.
    """
    name = "patches"
    try:
        report = patching.verify(install, patching.load_series(install.version))
    except patching.PatchError as error:
        yield fail(name, str(error), "fix that, then: sgl-entropy patch apply")
        return
    count = sum(state == "patched" for state in report.files.values())
    if report.state == "applied":
        yield ok(name, f"applied, {count} files, every hash is right")
        damaged = [note for note in report.notes if note.startswith("stored original")]
        if damaged:
            fix = "serving works, reverting does not: reinstall SGLang to get them back"
            yield Check("warn", "patch originals", "; ".join(damaged), fix)
    elif report.state == "not applied":
        yield fail(name, "not applied", "sgl-entropy patch apply")
    elif report.state == "applied (other series)":
        found = "those of another sgl-entropy release are applied"
        yield fail(name, found, "sgl-entropy patch apply replaces them")
    else:
        foreign = [f"{n} {s}" for n, s in report.files.items() if s in ("changed", "missing")]
        found = "neither applied nor absent: " + _listed(
            foreign or ["some files patched, some not"]
        )
        fix = f"{_reinstall(install)}, then: sgl-entropy patch apply"
        yield fail(name, found, fix)


def check_functions(
    install: SglangInstall, check: Callable[[Path], list[Mismatch]], count: int
) -> Iterator[Check]:
    """Every function and field of SGLang that we rely on, compared with its sources."""
    name = "functions"
    try:
        mismatches = check(install.root)
    except OSError as error:
        found = f"{install.root}: {error.strerror or error}: {error.filename}"
        yield fail(name, found, "make SGLang's sources readable")
        return
    if not mismatches:
        yield ok(name, f"all {count} uses of SGLang fit its sources")
    for mismatch in mismatches[:_SHOWN]:
        yield fail(name, mismatch.line(), f"its sources were changed: {_reinstall(install)}")
    if len(mismatches) > _SHOWN:
        more = f"{len(mismatches) - _SHOWN} more of {count} uses do not fit"
        yield fail(name, more, _reinstall(install))


def _reinstall(install: SglangInstall) -> str:
    return f"pip install --force-reinstall --no-deps sglang=={install.version}"


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
