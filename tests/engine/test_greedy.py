"""Greedy output with a drafter is the output without one, token for token."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.engine import pair
from tests.engine.client import EngineClient, Json
from tests.engine.prompts import MIXED

EOS = str(pair.EOS)
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "boolean"},
        "b": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3},
    },
    "required": ["a", "b"],
}
GRAMMARS = {
    "json_schema": {"json_schema": json.dumps(SCHEMA)},
    "regex": {"regex": "(abc|xyz|[0-9]{2,9})+x"},
    # Ends after three tokens, inside the first draft.
    "regex_that_ends_in_a_draft": {"regex": "[0-9]{3}"},
    "regex_and_stop_string": {"regex": "[a-z]{40}", "stop": ["e"]},
    "regex_and_stop_id": {"regex": "[a-z]{40}", "stop_token_ids": pair.token_ids("e")},
    "ebnf": {"ebnf": 'root ::= "x" root | "yes" | "no"'},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignore_eos": {"ignore_eos": True},
    "stop_at_eos": {"logit_bias": {EOS: 4.0}},
    "logit_bias": {"ignore_eos": True, "logit_bias": {"20": 3.0, "33": -9.0, "100": -4.5}},
    "stop_strings": {"ignore_eos": True, "stop": ["uG", "the"]},
    # One prompt's first token is a stop id: that request leaves before the first draft.
    "stop_token_ids": {"stop_token_ids": [100, 42]},
    "min_new_tokens": {"min_new_tokens": 30, "logit_bias": {EOS: 6.0}},
    "min_new_tokens_and_stop_ids": {"min_new_tokens": 9, "stop_token_ids": [100, 42, 33]},
    "frequency_penalty": {"ignore_eos": True, "frequency_penalty": 0.7},
    "presence_penalty": {"ignore_eos": True, "presence_penalty": 1.3},
    "negative_penalties": {"frequency_penalty": -0.2, "presence_penalty": -0.4},
    "repetition_penalty": {"ignore_eos": True, "repetition_penalty": 1.4},
    "every_penalty": {
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "min_new_tokens": 20,
        "logit_bias": {EOS: 5.0, "33": -2.0},
    },
    **GRAMMARS,
}


def outcome(reply: Json) -> tuple[list[int], Json, str]:
    return reply["output_ids"], reply["meta_info"]["finish_reason"], reply["text"]


@pytest.mark.parametrize("name", SETTINGS)
def test_equal_to_no_speculation(none: EngineClient, drafting: EngineClient, name: str) -> None:
    """Eight prompts of mixed lengths together, and two of them alone."""
    settings = SETTINGS[name]
    expected = [outcome(reply) for reply in none.batch(MIXED, **settings)]
    assert [outcome(reply) for reply in drafting.batch(MIXED, **settings)] == expected
    for i in (0, 6):
        assert outcome(drafting.generate(MIXED[i], **settings)) == expected[i]


def test_equal_when_other_requests_come_and_go(none: EngineClient, drafting: EngineClient) -> None:
    """Requests with settings of their own start and end while the others run."""
    requests = [
        {"input_ids": prompt, "max_new_tokens": 5 + 9 * i, **settings}
        for i, (prompt, settings) in enumerate(
            zip(MIXED, [*SETTINGS.values()][: len(MIXED)], strict=True)
        )
    ]
    requests += [{"input_ids": MIXED[1], **SETTINGS["every_penalty"]}]
    requests += [{"input_ids": MIXED[2], **grammar} for grammar in GRAMMARS.values()]
    expected = [outcome(none.generate(**request)) for request in requests]
    assert [outcome(reply) for reply in drafting.together(requests)] == expected


def test_acceptance_varies(drafting: EngineClient) -> None:
    """Nothing above proves much if drafts are always, or never, accepted.

    One at a time: a batch does not verify the ends of its drafts.
    """
    replies = [drafting.generate(prompt, 64, ignore_eos=True) for prompt in MIXED]
    cycles = sum(reply["meta_info"]["spec_cycles"] for reply in replies)
    emitted = sum(reply["meta_info"]["spec_emitted"] for reply in replies)
    assert 1.3 < emitted / cycles < 4.5
    by_position = [reply["meta_info"]["spec_accepted_by_position"] for reply in replies]
    totals = [sum(column) for column in zip(*by_position, strict=True)]
    assert all(early >= late for early, late in itertools.pairwise(totals))
    assert cycles > totals[0]
    assert totals[-1] > 0, "no draft was ever accepted to its end"


def test_counters_add_up(drafting: EngineClient) -> None:
    """The first token comes from the prompt's forward, every other from a cycle."""
    most = 11 if drafting.name == "edsd_tree" else 4
    cycles = drafted = 0
    for reply in drafting.batch(MIXED, 37, ignore_eos=True):
        meta = reply["meta_info"]
        assert meta["spec_emitted"] == meta["completion_tokens"] - 1 == 36
        assert meta["spec_cycles"] == meta["spec_verify_ct"]
        assert sum(meta["spec_accepted_by_position"]) <= meta["spec_drafted"]
        cycles += meta["spec_cycles"]
        drafted += meta["spec_drafted"]
    if drafting.name == "eagle3":
        assert drafted == most * cycles, "this server's rows are as good as free"
    else:
        assert 0 < drafted < most * cycles, "a batch of eight verifies what is worth its rows"


def test_one_request_verifies_its_whole_chain(drafting: EngineClient) -> None:
    """Rows that cost nothing are not saved: up to eight take as long as one."""
    meta = drafting.generate(MIXED[0], 37, ignore_eos=True)["meta_info"]
    nodes = meta["spec_drafted"] / meta["spec_cycles"]
    assert 7 <= nodes <= 11 if drafting.name == "edsd_tree" else nodes == 4


def test_several_answers_of_one_prompt(none: EngineClient, drafting: EngineClient) -> None:
    expected = none.generate(MIXED[0], 30, ignore_eos=True)["output_ids"]
    body = {
        "input_ids": MIXED[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 30, "n": 3, "ignore_eos": True},
    }
    replies = drafting.post(body)
    assert [reply["output_ids"] for reply in replies] == [expected] * 3


def test_a_grammar_that_ended_lets_nothing_more_through(
    none: EngineClient, drafting: EngineClient
) -> None:
    """With ignore_eos the request ends with its grammar.

    Upstream without speculation emits one unconstrained token behind it; a drafter may.
    """
    settings = {"regex": "[0-9]{3}", "ignore_eos": True}
    expected = none.batch(MIXED, 24, **settings)
    for plain, reply in zip(expected, drafting.batch(MIXED, 24, **settings), strict=True):
        ended = plain["output_ids"].index(pair.EOS) + 1
        assert reply["output_ids"][:ended] == plain["output_ids"][:ended]
        assert len(reply["output_ids"]) <= ended + 1
        assert reply["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_grammar_with_no_way_on_ends_its_request_alone(drafting: EngineClient) -> None:
    """min_new_tokens forbids the only token that the grammar allows; upstream's scheduler dies."""
    stuck = {"input_ids": MIXED[0], "regex": "[0-9]{3}", "min_new_tokens": 12}
    fine = {"input_ids": MIXED[1], "max_new_tokens": 40, "ignore_eos": True}
    expected = drafting.generate(**fine)["output_ids"]
    for temperature in (0.0, 0.9):
        ended, other = drafting.together([{**stuck, "temperature": temperature}, fine])
        assert other["output_ids"] == expected
        assert len(ended["output_ids"]) <= 14
        assert ended["meta_info"]["finish_reason"]["type"] in ("abort", "stop")
    drafting.settle()


@pytest.mark.parametrize("leaving", [0, 3, 7])
def test_a_request_that_ends_at_its_first_token_leaves_the_others_alone(
    none: EngineClient, drafting: EngineClient, leaving: int
) -> None:
    """Upstream cuts the last row of the draft state instead of the leaving request's."""
    expected = [reply["output_ids"] for reply in none.batch(MIXED, 24, ignore_eos=True)]
    body = {
        "input_ids": MIXED,
        "sampling_params": [
            {"temperature": 0, "ignore_eos": True, "max_new_tokens": 1 if i == leaving else 24}
            for i in range(len(MIXED))
        ],
    }
    replies = drafting.post(body)
    expected[leaving] = expected[leaving][:1]
    assert [reply["output_ids"] for reply in replies] == expected
