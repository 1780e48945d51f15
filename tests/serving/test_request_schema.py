"""What a request may hold: all else is refused by the name of its field."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_entropy.serving.request_schema import (
    Request,
    Sampling,
    Served,
    check_ids,
    check_logging,
    check_request,
)

SERVED = Served(vocab_size=10, hidden_size=2, ranks=2)
DEEP = "[" * 100_000


def refused(message: str, served: Served = SERVED, **fields: Any) -> None:
    with pytest.raises(ValueError, match=message):
        check_request(fields, served)


SAMPLING: list[tuple[str, Any, str]] = [
    ("foo", 1, ""),
    ("max_new_tokens", 1.5, "a valid integer, found 1.5"),
    ("max_new_tokens", -3, "greater than or equal to 0, found -3"),
    ("max_new_tokens", True, "a valid integer, found True"),
    ("min_new_tokens", None, "a valid integer, found None"),
    ("n", None, "a valid integer"),
    ("n", 0, "greater than or equal to 1"),
    ("n", 10**9, "less than or equal to 1024"),
    ("temperature", math.nan, "a finite number, found nan"),
    ("temperature", 10**400, "a valid number"),
    ("temperature", "hot", "a valid number, found 'hot'"),
    ("top_p", 0, "greater than 0"),
    ("top_k", 2**33, "less than or equal to 2147483647"),
    ("top_k", 0, r"-1 \(all\) or at least 1, found 0"),
    ("repetition_penalty", 0, "greater than or equal to"),
    ("logit_bias", [1], "a valid dictionary"),
    ("logit_bias", {"5": math.inf}, "a finite number, found inf"),
    ("logit_bias", {"x": 1}, "a token id, found 'x'"),
    ("logit_bias", {"10": 1}, r"0\.\.9, found 10"),
    ("stop_token_ids", 3, "a valid list"),
    ("stop_token_ids", [9, -1], "greater than or equal to 0 .*found -1"),
    ("stop_token_ids", [9, 10], r"0\.\.9, found 10"),
    ("stop", 7, "a valid string or a valid list, found 7"),
    ("stop", [""], "at least 1 character"),
    ("stop_regex", "(", "a regular expression"),
    ("json_schema", {"type": "object"}, "a valid string"),
    ("json_schema", "5", "a JSON schema"),
    ("json_schema", "{nope", "expected JSON"),
    ("json_schema", DEEP, "expected JSON"),
    ("structural_tag", "{}", '"format"'),
    ("structural_tag", '{"structures": [], "triggers": []}', '"format"'),
    ("regex", 1, "a valid string"),
    ("ebnf", ["root"], "a valid string"),
    ("skip_special_tokens", "yes", "a valid boolean"),
    ("stream_interval", 0, "greater than or equal to 1"),
    ("sampling_seed", 2**64, "less than or equal to"),
]


@pytest.mark.parametrize(("name", "value", "message"), SAMPLING)
def test_sampling_parameters_that_no_answer_can_be_drawn_with(
    name: str, value: Any, message: str
) -> None:
    refused(rf"^sampling_params\b.*{name}.*{message}", text="x", sampling_params={name: value})


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "expected one of text, input_ids and input_embeds"),
    ({"text": "x", "input_ids": [[1]]}, "found text and input_ids"),
    ({"text": 3}, "^text: expected a valid string or a valid list, found 3"),
    ({"text": []}, "^text: .*at least 1 item"),
    ({"input_ids": [1, "a"]}, "^input_ids: .*found 'a'"),
    ({"input_ids": [True]}, "^input_ids: .*found True"),
    ({"input_ids": [[1], []]}, "^input_ids: .*at least 1 item"),
    ({"input_ids": [[1], [10]]}, r"^input_ids must be whole numbers in 0\.\.9, found 10"),
    ({"input_embeds": [[0.0, 1.0, 2.0]]}, "^input_embeds: expected rows of 2 numbers, found 3"),
    ({"input_embeds": [[0.0, math.nan]]}, "^input_embeds: .*finite"),
    ({"text": "x", "sampling_params": [{}]}, "^sampling_params: expected one value"),
    ({"text": ["x", "y"], "return_logprob": [True]}, "^return_logprob: expected 2 values"),
    ({"text": ["x", "y"], "rid": ["a", "a"]}, "^rid: expected a name of its own"),
    ({"text": "x", "top_logprobs_num": 11}, r"^top_logprobs_num: expected at most 10"),
    ({"text": "x", "top_logprobs_num": -1}, "^top_logprobs_num: "),
    ({"text": "x", "logprob_start_len": -5}, "^logprob_start_len: "),
    ({"text": "x", "token_ids_logprob": [-1]}, "^token_ids_logprob: "),
    ({"text": "x", "token_ids_logprob": [10]}, r"^token_ids_logprob .*0\.\.9, found 10"),
    ({"text": "x", "data_parallel_rank": 2}, r"^data_parallel_rank: expected 0\.\.1, found 2"),
    ({"text": "x", "session_params": {"id": 3}}, "^session_params: "),
    ({"text": ["x"], "image_data": [["a.png"]]}, "^image_data: .* reads text alone"),
    ({"text": "x", "audio_data": " "}, "^audio_data: "),
    ({"text": "x", "bootstrap_port": 2**17}, "^bootstrap_port: "),
    ({"text": "x", "priority": 2**70}, "^priority: "),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    refused(message, **fields)


def test_texts_need_a_tokenizer() -> None:
    without = Served(10, 2, tokenizer=False)
    refused(
        "stop: this server has no tokenizer", without, input_ids=[1], sampling_params={"stop": "x"}
    )


def test_a_drafter_takes_the_place_of_the_hidden_states() -> None:
    speculates = Served(10, 2, speculates=True)
    for value, prompt in ((True, "x"), ([False, True], ["x", "y"])):
        refused("^return_hidden_states: ", speculates, text=prompt, return_hidden_states=value)
        check_request({"text": prompt, "return_hidden_states": value}, SERVED)


def test_sound_requests_pass() -> None:
    sampling = {"max_new_tokens": None, "temperature": 0, "stop_token_ids": [0, 9], "stop": ["x"]}
    check_request({"input_ids": [0, 9], "sampling_params": sampling}, SERVED)
    check_request(
        {
            "text": ["x", "y"],
            "sampling_params": {"n": 2, "json_schema": "$$ANY$$", "logit_bias": {"3": -100}},
            "token_ids_logprob": [[1], None],
            "top_logprobs_num": 10,
            "data_parallel_rank": 1,
        },
        SERVED,
    )
    check_request({"text": ["x", "y"], "image_data": [[None], None], "video_data": []}, SERVED)
    check_request({"text": "x", "image_data": "a.png"}, Served(10, 2, multimodal=True))
    check_request({"input_embeds": [[[0, 1.5]], [[2.0, 3.0]]], "rid": ["a", "b"]}, SERVED)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(Request.model_fields)), ANY, max_size=3),
    st.dictionaries(st.sampled_from(sorted(Sampling.model_fields)), ANY, max_size=3),
)
def test_any_value_passes_or_is_refused_in_one_line(fields: Any, sampling: Any) -> None:
    refusal = ""
    try:
        check_request({"text": "x", "sampling_params": sampling} | fields, SERVED)
    except ValueError as problem:
        refusal = str(problem)
    assert "\n" not in refusal
    assert not refusal or re.search("expected|must be|no such field|no tokenizer", refusal)


def test_of_many_wrong_ids_five_are_shown() -> None:
    with pytest.raises(ValueError, match=r"found 10, 11, 12, 13, 14 and 2 more"):
        check_ids("input_ids", range(8, 17), 10)


def test_logging_that_would_break_every_later_request() -> None:
    check_logging({"log_requests": True, "log_requests_level": 3, "crash_dump_folder": None})
    for wrong in ({"log_requests_level": 5}, {"dump_requests_threshold": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected"):
            check_logging(wrong)
