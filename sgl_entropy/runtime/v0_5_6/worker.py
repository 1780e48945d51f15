"""EDSD's draft worker and its registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def create_worker(**kwargs: Any) -> Any:
    """Build the worker; imported late, because the registry is filled while SGLang loads."""
    from sglang.srt.speculative.eagle_worker import EAGLEWorker

    kwargs.pop("enable_overlap", None)
    return EAGLEWorker(**kwargs)


def register(register_speculative_algorithm: Callable[..., Any]) -> None:
    """Make ``--speculative-algorithm EDSD`` known to SGLang's registry (called by the patch)."""
    register_speculative_algorithm("EDSD", worker_cls=create_worker, flags=("EAGLE", "EAGLE3"))
