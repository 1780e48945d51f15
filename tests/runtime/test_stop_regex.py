"""A stop expression that backtracks without end ends its request, not the scheduler's time."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sgl_entropy.runtime.v0_5_6 import ours, stop_regex


@pytest.mark.parametrize("expression", ["(a+)+b", "(a|aa)+b", "(?:a|a?)+b", r"(\w+\s?)+:"])
def test_without_end(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    monkeypatch.setattr(ours, "active", lambda: True)
    req = SimpleNamespace(to_finish=None)
    stop_regex.found(req, "a", "a")  # imports SGLang
    began = time.perf_counter()
    assert not stop_regex.found(req, expression, "a" * 4000 + "!")
    assert time.perf_counter() - began < 2
    if req.to_finish is not None:
        assert "backtracks" in req.to_finish.message
        assert req.to_finish.status_code == 400


def test_the_first_really_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "active", lambda: True)
    req = SimpleNamespace(to_finish=None)
    assert not stop_regex.found(req, "(a|aa)+$", "a" * 60 + "!")
    assert req.to_finish is not None


def test_others_match_as_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for active in (True, False):
        monkeypatch.setattr(ours, "active", lambda active=active: active)
        req = SimpleNamespace(to_finish=None)
        for expression, matches in (("[0-9]{3}", True), ("^b", False), (r"\bis\b", True)):
            assert stop_regex.found(req, expression, "it is 123") is matches
        assert req.to_finish is None
