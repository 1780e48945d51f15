"""Stand-ins for packages that SGLang imports on a CPU but never calls there.

SGLang v0.5.6.post2 imports ``sgl_kernel`` (no wheel for CPUs without AMX) and ``torchvision``
(image processors) at module level. On the CPU engine, and only where the real package is
absent, an empty module takes its place: importing any name from it works, calling that name
raises an error that says which package is missing. A real package always wins.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGES = ("sgl_kernel", "torchvision")


class _Missing:
    """A name imported from an absent package: harmless until used."""

    def __init__(self, qualified: str) -> None:
        self._qualified = qualified

    def __repr__(self) -> str:
        return f"<{self._qualified}: not installed>"

    def _refuse(self) -> RuntimeError:
        package = self._qualified.split(".", 1)[0]
        return RuntimeError(
            f"{self._qualified} was called, but the package {package} is not installed: "
            "this feature is not available on the CPU engine"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._qualified}.{name}")


class _StandinModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


class _StandinFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on ``sys.meta_path``, so that it is asked only where nothing real was found."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", 1)[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandinModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def cpu_engine_asked() -> bool:
    """Whether this process runs SGLang's CPU engine (the same test as ``is_cpu()``, no torch)."""
    return os.getenv("SGLANG_USE_CPU_ENGINE", "0") == "1"


def absent(package: str) -> bool:
    """Whether ``package`` cannot be imported for real."""
    module = sys.modules.get(package)
    if module is not None:
        return isinstance(module, _StandinModule)
    spec = importlib.util.find_spec(package)
    return spec is None or isinstance(spec.loader, _StandinFinder)


def install() -> tuple[str, ...]:
    """Put stand-ins in place of the absent packages; returns their names. Safe to call twice."""
    if not cpu_engine_asked():
        return ()
    if any(isinstance(finder, _StandinFinder) for finder in sys.meta_path):
        return ()
    missing = tuple(name for name in PACKAGES if absent(name))
    if missing:
        sys.meta_path.append(_StandinFinder(missing))
    return missing


def plain_layers() -> bool:
    """Whether layers must use their plain torch path: the CPU engine, no AMX kernels, no vLLM."""
    return cpu_engine_asked() and absent("vllm")
