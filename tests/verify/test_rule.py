"""EASD's settings: of the server, and of a single request."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from sgl_entropy.verify.rule import EasdRule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_entropy": -0.1}, "target_entropy must be a number from 0"),
        ({"target_entropy": math.nan}, "target_entropy"),
        ({"draft_entropy": math.inf}, "draft_entropy"),
        ({"draft_entropy": "2"}, "draft_entropy"),
        ({"draft_entropy": True}, "draft_entropy"),
        ({"overlap": 1.1}, "overlap must be a share"),
        ({"overlap": None}, "overlap"),
        ({"top_n": 0}, "top_n must be a whole number"),
        ({"top_n": 2.0}, "top_n"),
        ({"top_n": 10**6}, "top_n"),
        ({"normalised": True}, "a share with normalised"),
        ({"residual": 1}, "residual must be true or false"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EasdRule(**changes)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"target_entropy.*top_n.*overlap"):
        EasdRule(target_entropy=-1, top_n=0, overlap=2)


def test_it_survives_json_and_refuses_unknown_keys() -> None:
    rule = EasdRule(1.5, 1.0, 5, 0.4, residual=True)
    assert EasdRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ValueError, match="unknown key colour"):
        EasdRule.from_dict({"colour": 1})


def test_a_request_turns_it_off_or_changes_thresholds() -> None:
    rule = EasdRule()
    assert rule.of_request(None) is rule
    assert rule.of_request(True) is rule
    assert rule.of_request(False) is None
    changed = rule.of_request({"target_entropy": 3, "overlap": 0.9})
    assert changed == EasdRule(target_entropy=3, overlap=0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("off", "true, false or an object"),
        (0, "true, false or an object"),
        ([1], "true, false or an object"),
        ({"entropy": 1}, "unknown key entropy"),
        ({"top_n": 5}, "unknown key top_n; a request may set target_entropy"),
        ({3: 1}, "unknown key 3"),
        ({"overlap": 7}, "overlap must be a share"),
        ({"draft_entropy": "high"}, "draft_entropy must be a number"),
    ],
)
def test_a_requests_nonsense_is_told(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EasdRule().of_request(given)
