"""SGLang's own modules are imported on a machine without a GPU, so its CPU engine is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sgl_entropy.runtime.v0_5_6.modes import Mode

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mode | None], None]:
    """Let this process serve a mode."""
    from sgl_entropy.runtime.v0_5_6 import draft_stats, easd

    def serve(mode: Mode | None) -> None:
        for module in (easd, draft_stats):
            monkeypatch.setattr(module, "served_mode", lambda: mode)

    return serve
