"""The one line of progress of stages that count answer tokens."""

from __future__ import annotations

import time

import pytest

from sgl_entropy.train.machine.token_progress import TokenProgress


def test_rate_and_time_left_count_new_tokens_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = TokenProgress(1_000, 3_000)
    progress.update(1_000)
    now = 105.0
    progress.update(1_250)  # too early for another line
    now = 120.0
    progress.update(1_500)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "[0:00] 1,000 of 3,000 answer tokens, 0 tokens/s",
        "[0:20] 1,500 of 3,000 answer tokens, 25 tokens/s (about 1:00 left)",
    ]
