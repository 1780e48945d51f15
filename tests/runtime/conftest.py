"""A process that serves a mode, for the tests of what runs inside the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sgl_entropy.serving.mode import Mode


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mode | None], None]:
    """Let this process serve a mode."""
    from sgl_entropy.runtime.v0_5_6 import counters, draft_stats, draft_stop, easd

    def serve(mode: Mode | None) -> None:
        for module in (counters, draft_stats, draft_stop, easd):
            monkeypatch.setattr(module, "served_mode", lambda: mode)

    return serve
