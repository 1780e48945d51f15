"""Build or refresh the pinned environment: ``python requirements/build_env.py .venv``.

Standard library only, since nothing is installed yet. Three states, told apart by two stamp
files inside the environment:

- no stamp: a build that never finished. It is removed and built anew;
- the pins' stamp is current: nothing to do but, where pyproject.toml changed, reinstall the
  project itself;
- the pins' stamp is old: pip moves what changed (another Python: built anew).

A stamp is removed before its work and written after it, so that after an interrupt at any moment
the work is done again: half an environment is never taken for a whole one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ("torch.txt", "sglang-v0.5.6.post2-cpu.txt", "dev.txt")
PYTHONS = ((3, 11), (3, 12))
# Measured: the environment is 2.7 GB, and pip holds a wheel and its contents at once.
FREE_BYTES = 5 * 2**30


class BuildError(RuntimeError):
    """The environment cannot be built; the message says what to do."""


def check_python() -> None:
    """Refuse a Python for which the pins do not exist."""
    if sys.version_info[:2] not in PYTHONS:
        known = " or ".join(".".join(map(str, version)) for version in PYTHONS)
        raise BuildError(
            f"the pinned environment needs Python {known}, but {sys.executable} is "
            f"{sys.version.split()[0]}; name another one: make PYTHON=python3.11 demo"
        )


def python_tag() -> str:
    """The part of the Python version that an environment cannot change."""
    return "python{}.{}".format(*sys.version_info[:2])


def pins_key(requirements: Path, torch_spec: str) -> str:
    """The Python version and a hash of all pins and of the torch build asked for."""
    digest = hashlib.sha256(torch_spec.encode())
    for name in PINS:
        digest.update((requirements / name).read_bytes())
    return f"{python_tag()} {digest.hexdigest()}"


def project_key(root: Path) -> str:
    """Hash of what an editable install depends on: names, packages and commands."""
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()


def stamped(stamp: Path, key: str) -> bool:
    """Whether ``stamp`` says that the work for ``key`` was finished."""
    try:
        return stamp.read_text() == key
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def stamp_for(stamp: Path, key: str) -> Iterator[None]:
    """Remove the stamp, do the work, write the stamp only when it succeeded."""
    stamp.unlink(missing_ok=True)
    yield
    temporary = stamp.with_suffix(".tmp")
    temporary.write_text(key)
    temporary.replace(stamp)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: two `make` side by side would mix their installs."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another build of this environment is running; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def step(label: str, command: list[str]) -> None:
    """Run one command, quiet unless it fails; print what it is and how long it took."""
    print(f"  {label} ...", end=" ", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise BuildError(f"failed: {shlex.join(command)}\n{tail}")


def build(venv: Path, torch_spec: str | None, pip_args: list[str]) -> None:
    """Bring ``venv`` to the state that the pins and pyproject.toml describe."""
    requirements = ROOT / "requirements"
    spec = torch_spec or next(
        line for line in (requirements / PINS[0]).read_text().splitlines() if "==" in line
    )
    pins, project = venv / "pins.stamp", venv / "project.stamp"
    key = pins_key(requirements, spec)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", *pip_args]
    if not stamped(pins, key):
        known_good = pins.exists() and pins.read_text().startswith(python_tag())
        if venv.exists() and not known_good:
            print(f"{venv}: unfinished, or of another Python; starting over", flush=True)
            shutil.rmtree(venv)
        free = shutil.disk_usage(venv.parent).free
        if free < FREE_BYTES and not known_good:
            raise BuildError(
                f"{venv.parent} has {free / 2**30:.1f} GB free; the environment needs "
                f"{FREE_BYTES / 2**30:.0f} GB while it is built"
            )
        print(f"building {venv} (about 3 minutes, 2.7 GB, once)", flush=True)
        if not known_good:
            step("virtual environment", [sys.executable, "-m", "venv", str(venv)])
        project.unlink(missing_ok=True)
        with stamp_for(pins, key):
            step(f"{spec}", [*pip, spec])
            # After torch: whatever versions torch pulled in, the pins have the last word.
            for name in PINS[1:]:
                step(name, [*pip, "--no-deps", "-r", str(requirements / name)])
    if not stamped(project, project_key(ROOT)):
        with stamp_for(project, project_key(ROOT)):
            editable = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
            step("sgl-entropy, editable", [*pip, *editable])


def main() -> int:
    """Parse the command line and build; expected errors become one message and exit code 2."""
    parser = argparse.ArgumentParser(description="Build the pinned environment.")
    parser.add_argument("venv", type=Path)
    parser.add_argument("--torch", metavar="SPEC", help="default: the pin in torch.txt")
    parser.add_argument(
        "--pip-args", default="", metavar="ARGS", help="more arguments for every pip install"
    )
    args = parser.parse_args()
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    try:
        check_python()
        venv = args.venv.resolve()
        venv.parent.mkdir(parents=True, exist_ok=True)
        with locked(venv.parent):
            build(venv, args.torch or None, shlex.split(args.pip_args))
    except (BuildError, OSError) as error:
        print(f"build_env: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to start over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
