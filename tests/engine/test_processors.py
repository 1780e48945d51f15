"""Custom logit processors: the same tokens with a drafter as without, and no harm to others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.client import EngineClient, Json
from tests.engine.processors import Ban, NeverTwice, Raises
from tests.engine.prompts import MIXED

Request = dict[str, Any]


def asked(name: str, banned: list[list[int]]) -> list[Request]:
    """One request a prompt, each with parameters of its own."""
    processor = {"ban": Ban, "state": NeverTwice}[name].to_str()
    return [
        {
            "input_ids": prompt,
            "max_new_tokens": 24,
            "ignore_eos": True,
            "custom_logit_processor": processor,
            "custom_params": {"ban": banned[i]} if name == "ban" else {},
        }
        for i, prompt in enumerate(MIXED)
    ]


def ids(reply: Json) -> list[int]:
    return [*reply["output_ids"]]


@pytest.fixture(scope="module")
def free(none: EngineClient) -> list[list[int]]:
    """What is written without a processor."""
    return [ids(reply) for reply in none.batch(MIXED, 24, ignore_eos=True)]


@pytest.mark.parametrize("name", ["ban", "state"])
def test_equal_to_no_speculation(
    none: EngineClient, drafting: EngineClient, free: list[list[int]], name: str
) -> None:
    requests = asked(name, [sorted(set(answer))[:3] for answer in free])
    expected = [ids(none.generate(**request)) for request in requests]
    changed = sum(a != b for a, b in zip(expected, free, strict=True))
    assert changed >= len(free) // 2, "too little was changed"
    for banned, answer in zip(
        [r["custom_params"].get("ban") for r in requests], expected, strict=True
    ):
        assert not set(banned or ()) & set(answer)
    settings = drafting.settings.get("custom_params", {})
    for request in requests:
        request["custom_params"] = settings | request["custom_params"]
    assert [ids(drafting.generate(**request)) for request in requests[:2]] == expected[:2]
    assert [ids(reply) for reply in drafting.together(requests)] == expected


@pytest.mark.parametrize("after", [0, 5])
def test_one_that_raises_fails_its_request_alone(
    any_server: EngineClient, free: list[list[int]], after: int
) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    bad = {
        "input_ids": MIXED[0],
        "sampling_params": sampling | {"custom_params": {"after": after}},
        "custom_logit_processor": Raises.to_str(),
    }
    status, message = any_server.refusal(bad)
    assert status == 400, message
    assert "as asked" in message
    assert ids(any_server.generate(MIXED[0], 24, ignore_eos=True)) == free[0]


def test_a_string_that_is_none_is_refused(any_server: EngineClient) -> None:
    body = {
        "input_ids": MIXED[0],
        "sampling_params": {},
        "custom_logit_processor": '{"callable": "00"}',
    }
    status, message = any_server.refusal(body)
    assert status == 400
    assert "custom_logit_processor" in message
