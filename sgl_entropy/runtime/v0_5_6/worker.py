"""EDSD's draft worker and its registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sgl_entropy.runtime.v0_5_6.switch_args import served_switch


def create_worker(**kwargs: Any) -> Any:
    """Build the worker; imported late, because the registry is filled while SGLang loads."""
    from sglang.srt.speculative.eagle_worker import EAGLEWorker

    kwargs.pop("enable_overlap", None)
    served = served_switch()
    if served is not None:
        from sgl_entropy.runtime.v0_5_6.switching import SwitchingWorker

        return SwitchingWorker(served, **kwargs)
    return EAGLEWorker(**kwargs)


def register(register_speculative_algorithm: Callable[..., Any]) -> None:
    """Make ``--speculative-algorithm EDSD`` known to SGLang's registry (called by the patch)."""
    register_speculative_algorithm("EDSD", worker_cls=create_worker, flags=("EAGLE", "EAGLE3"))
