"""Which tokens must wait for ``min_new_tokens``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sgl_entropy.runtime.v0_5_6 import ours, penalties


def request(eos: int | None, of_model: set[int] | None, **changes: Any) -> Any:
    fields = {
        "sampling_params": SimpleNamespace(stop_token_ids={7}),
        "tokenizer": SimpleNamespace(eos_token_id=eos, additional_stop_token_ids=[5]),
        "eos_token_ids": of_model,
        "vocab_size": 40,
    }
    return SimpleNamespace(**fields | changes)


@pytest.mark.parametrize(
    ("req", "expected"),
    [
        (request(2, {2, 30}), {2, 5, 7, 30}),
        (request(None, {30}), {5, 7, 30}),
        (request(None, None), {5, 7}),
        (request(2, {99}), {2, 5, 7}),
        (request(2, {30}, tokenizer=None), {7, 30}),
    ],
)
def test_every_token_that_ends_an_answer(
    monkeypatch: pytest.MonkeyPatch, req: Any, expected: set[int]
) -> None:
    monkeypatch.setattr(ours, "active", lambda: True)
    assert set(penalties.end_ids(req)) == expected


def test_where_we_are_not_asked_upstreams_own_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "active", lambda: False)
    assert set(penalties.end_ids(request(2, {30}))) == {2, 5, 7}
