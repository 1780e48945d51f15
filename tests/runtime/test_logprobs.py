"""Log-probabilities that JSON has no number for."""

from __future__ import annotations

import json
import math

import pytest

from sgl_entropy.runtime.v0_5_6 import logprobs, ours


def test_null_in_json_and_the_lowest_number_for_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [None, -0.5, -math.inf, math.nan]
    for active, reported in ((True, [None, -0.5, None, None]), (False, values)):
        monkeypatch.setattr(ours, "active", lambda active=active: active)
        assert logprobs.in_json(values) == reported
    monkeypatch.setattr(ours, "active", lambda: True)
    tokens = [(value, i, "x") for i, value in enumerate(logprobs.in_json(values))]
    told = logprobs.in_openai(tokens)
    assert [value for value, *_ in told] == [-9999.0, -0.5, -9999.0, -9999.0]
    json.dumps(told, allow_nan=False)
