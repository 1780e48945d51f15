"""A server of everything at once: trees, EASD, two drafters, two ranks, a small pool.

One token of its target breaks the logits. Its clients ask for exact verification unless they say
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sgl_entropy.evaluate.walk import greedy_answers
from sgl_entropy.target.plain import PlainTarget
from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED
from tests.engine.test_memory import fill_the_pool


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[EngineClient]:
    yield fleet.client("crowd")
    # SGLang's data-parallel controller polls: it must not run beside all later tests.
    fleet.stop("crowd")


@pytest.fixture
def crowd(running: EngineClient) -> Iterator[EngineClient]:
    yield running
    running.settle()


def counters(client: EngineClient) -> list[Any]:
    """Of each rank."""
    states = client.http.get("/get_server_info")["internal_states"]
    return [state["sgl_entropy_counters"] for state in states]


@pytest.fixture(scope="module")
def plain(fleet: Fleet) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Answers of its target, computed here: what ``none`` serves may write the broken token."""
    target = PlainTarget.from_folder(fleet.served_target("crowd"))

    def answers(prompts: list[list[int]], length: int) -> list[list[int]]:
        written = greedy_answers(target, prompts, length, ())
        return [a.tokens[len(p) :].tolist() for p, a in zip(prompts, written, strict=True)]

    return answers


def test_two_data_parallel_ranks_answer_as_one(plain: Any, crowd: EngineClient) -> None:
    expected = plain(MIXED, 40)
    requests = [{"input_ids": p, "max_new_tokens": 40, "ignore_eos": True} for p in MIXED]
    assert [reply["output_ids"] for reply in crowd.together(requests)] == expected
    cycles = [rank["cycles"] for rank in counters(crowd)]
    assert len(cycles) == 2
    assert min(cycles) > 0, "one rank did all the work"


def test_a_small_pool_throws_requests_out_and_all_end_as_without(
    plain: Any, crowd: EngineClient
) -> None:
    """Requests that are prefilled anew have missed nothing, whichever drafter drafts next."""
    before = sum(rank["drafter_switches"] for rank in counters(crowd))
    fill_the_pool(crowd, plain)
    assert sum(rank["drafter_switches"] for rank in counters(crowd)) > before + 10


def test_relaxed_and_sampled_requests_are_thrown_out_and_end(crowd: EngineClient) -> None:
    asked = [
        {"input_ids": MIXED[i % 6], "max_new_tokens": 90, "ignore_eos": True, **extra}
        | {"custom_params": {"easd": True}}
        for i in range(12)
        for extra in ({}, {"temperature": 0.9})
    ]
    replies = crowd.together(asked)
    assert [reply["meta_info"]["completion_tokens"] for reply in replies] == [90] * len(asked)
    assert sum(reply["meta_info"]["easd_fires"] for reply in replies) > 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_logits_that_are_no_numbers_end_their_request_alone(
    crowd: EngineClient, sampling: Any
) -> None:
    good = {"input_ids": MIXED[1], "max_new_tokens": 40, "ignore_eos": True}
    bad = {"input_ids": [*MIXED[1], pair.BROKEN, *MIXED[0]], **sampling}
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(crowd.generate, **good) for _ in range(3)]
        status, message = crowd.refusal(
            {"input_ids": bad["input_ids"], "sampling_params": {"max_new_tokens": 20, **sampling}}
        )
        replies = [one.result() for one in beside]
    assert (status, "NaN or infinite" in message) == (500, True), message
    assert [reply["meta_info"]["completion_tokens"] for reply in replies] == [40] * 3


def test_a_broken_request_leaves_nothing_to_those_that_begin_like_it(crowd: EngineClient) -> None:
    """NaN spreads to the rows before the token that broke, which must not be cached."""
    begin = [*MIXED[3], *MIXED[5], *MIXED[4]]  # no other test's
    for _ in range(2):  # of two ranks
        broken = {"input_ids": [*begin, pair.BROKEN], "sampling_params": {"max_new_tokens": 4}}
        assert crowd.refusal(broken)[0] == 500
    for _ in range(4):
        reply = crowd.generate(input_ids=begin, max_new_tokens=12, ignore_eos=True)
        assert reply["meta_info"]["completion_tokens"] == 12
