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
    from sgl_entropy.runtime.v0_5_6 import draft_stats, easd

    def serve(mode: Mode | None) -> None:
        for module in (easd, draft_stats):
            monkeypatch.setattr(module, "served_mode", lambda: mode)

    return serve
