"""Bad requests: one clear 400 each, and the server goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.prompts import MIXED

IDS = [5, 6, 7]
FEW = {"temperature": 0, "max_new_tokens": 4}


def with_sampling(**settings: Any) -> dict[str, Any]:
    return {"input_ids": IDS, "sampling_params": {**FEW, **settings}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no_ids": ({"input_ids": [], "sampling_params": FEW}, "input_ids"),
    "no_text": ({"text": "", "sampling_params": FEW}, "empty"),
    "above_the_context": ({"input_ids": [5] * 600, "sampling_params": FEW}, "context"),
    "id_negative": ({"input_ids": [5, -3], "sampling_params": FEW}, "input_ids"),
    "id_above_the_vocabulary": (
        {"input_ids": [5, pair.VOCABULARY], "sampling_params": FEW},
        "input_ids",
    ),
    "max_tokens_absurd": (with_sampling(max_new_tokens=10**12), "context"),
    "max_tokens_negative": (with_sampling(max_new_tokens=-3), "max_new_tokens"),
    "max_tokens_half": (with_sampling(max_new_tokens=2.5), "max_new_tokens"),
    "max_tokens_words": (with_sampling(max_new_tokens="many"), "max_new_tokens"),
    "temperature_negative": (with_sampling(temperature=-1.0), "temperature"),
    "temperature_nan": (with_sampling(temperature=math.nan), "temperature"),
    "temperature_infinite": (with_sampling(temperature=math.inf), "temperature"),
    "temperature_words": (with_sampling(temperature="hot"), "temperature"),
    "top_p_zero": (with_sampling(top_p=0.0), "top_p"),
    "top_k_zero": (with_sampling(temperature=1.0, top_k=0), "top_k"),
    "min_p_nan": (with_sampling(min_p=math.nan), "min_p"),
    "penalty_absurd": (with_sampling(frequency_penalty=99.0), "frequency_penalty"),
    "bias_nan": (with_sampling(logit_bias={"9": math.nan}), "logit_bias"),
    "bias_above_the_vocabulary": (with_sampling(logit_bias={"999": 1.0}), "logit_bias"),
    "stop_id_above_the_vocabulary": (
        with_sampling(stop_token_ids=[10**6], min_new_tokens=2),
        "stop_token_ids",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_400(any_server: EngineClient, name: str) -> None:
    body, word = BAD[name]
    status, message = any_server.refusal(body)
    assert status == 400, message
    assert word in message
    assert any_server.generate(MIXED[0], 3, ignore_eos=True)["meta_info"]["completion_tokens"] == 3


GRAMMARS_THAT_DO_NOT_COMPILE = {
    "regex": {"regex": "(["},
    "json_schema": {"json_schema": "{nope"},
    "ebnf": {"ebnf": "root ::= missing_rule"},
}


@pytest.mark.parametrize("name", GRAMMARS_THAT_DO_NOT_COMPILE)
def test_a_broken_grammar_fails_its_request_alone(any_server: EngineClient, name: str) -> None:
    status, message = any_server.refusal(with_sampling(**GRAMMARS_THAT_DO_NOT_COMPILE[name]))
    assert status != 200 or "abort" in message, message
    assert any_server.generate(MIXED[0], 3, ignore_eos=True)["meta_info"]["completion_tokens"] == 3


def test_an_empty_chat_is_refused(any_server: EngineClient) -> None:
    status, _ = any_server.refusal({"model": "x", "messages": []}, "/v1/chat/completions")
    assert status == 400
