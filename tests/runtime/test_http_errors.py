"""Which exceptions say that a request was wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sgl_entropy.runtime.v0_5_6 import http_errors, ours


def raised(problem: Exception, *callers: str) -> Exception:
    """``problem`` as if it had come through functions of these names."""

    def step(names: tuple[str, ...]) -> None:
        if not names:
            raise problem
        scope: dict[str, Callable[[tuple[str, ...]], None]] = {"step": step}
        exec(f"def {names[0]}(rest):\n    step(rest)", scope)
        scope[names[0]](names[1:])

    try:
        step(callers)
    except Exception as caught:
        return caught
    raise AssertionError


@pytest.mark.parametrize(
    ("problem", "callers", "wrong"),
    [
        (TypeError("x"), ("solve_dependencies",), True),
        (TypeError("x"), ("run_endpoint_function", "generate"), False),
        (IndexError("x"), ("run_endpoint_function", "normalize_batch_and_arguments"), True),
        (ValueError("x"), ("run_endpoint_function", "generate"), True),
    ],
)
def test_the_servers_own_faults_stay_faults(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, callers: tuple[str, ...], wrong: bool
) -> None:
    caught = raised(problem, *callers)
    assert http_errors.wrong_request(caught) is wrong
    for active in (True, False):
        monkeypatch.setattr(ours, "active", lambda active=active: active)
        assert (http_errors.unread(caught) is not None) is (wrong and active)


def test_one_line_for_the_client() -> None:
    assert http_errors.said(ValueError("a\n  b")) == "a b"
    assert http_errors.said(ValueError("\ud800")) == "\\ud800"
    assert http_errors.said(KeyError("role")).startswith("expected another kind of body (KeyError")
