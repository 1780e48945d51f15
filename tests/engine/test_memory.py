"""Caches, chunks, retraction, aborts: the same output, and the memory as it was."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from sgl_entropy_bench.http.client import ServerError

from tests.engine import pair
from tests.engine.client import EngineClient
from tests.engine.prompts import MIXED

# One long and many short ones, which leave few slots. A short one, thrown out, frees a slot for
# each of the others, but not a draft for each.
CROWD = [pair.token_ids("x" * 240), *(pair.token_ids(f"{i:02d} short") for i in range(15))]
LONG = [pair.token_ids((f"{i} long prompt; " * 12)[:150]) for i in range(6)]


def test_the_radix_cache_is_hit_and_changes_nothing(
    none: EngineClient, drafting: EngineClient
) -> None:
    prompt = pair.token_ids("a prefix that comes again and again and again, ")
    endings = [pair.token_ids(text) for text in ("one", "two", "three and more")]
    none.settle()
    drafting.settle()
    expected = [none.generate(prompt + end, 30, ignore_eos=True)["output_ids"] for end in endings]
    none.settle()
    for round_ in range(2):
        for ending, ids in zip(endings, expected, strict=True):
            reply = drafting.generate(prompt + ending, 30, ignore_eos=True)
            assert reply["output_ids"] == ids
            if round_ or ending is not endings[0]:
                assert reply["meta_info"]["cached_tokens"] >= len(prompt) - 1


def test_a_conversation_goes_on_from_its_own_answer(
    none: EngineClient, drafting: EngineClient
) -> None:
    """Upstream keeps the slots of the first prompt; the drafter's key is one token shorter."""
    replies = []
    for client in (none, drafting):
        client.settle()
        first = client.generate(MIXED[1], 40, ignore_eos=True)
        whole = MIXED[1] + first["output_ids"] + pair.token_ids(" and then?")
        replies.append(client.generate(whole, 30, ignore_eos=True))
    plain, drafted = replies
    assert drafted["output_ids"] == plain["output_ids"]
    kept = plain["meta_info"]["cached_tokens"]
    assert drafted["meta_info"]["cached_tokens"] >= kept - 1 >= len(MIXED[1]) - 1


def test_streaming_gives_the_same_ids_in_order(drafting: EngineClient) -> None:
    expected = drafting.generate(MIXED[0], 40, ignore_eos=True)
    body = {
        "input_ids": MIXED[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True},
    }
    events = list(drafting.http.events("/generate", body))
    assert events[-1]["output_ids"] == expected["output_ids"]
    assert events[-1]["text"] == expected["text"]
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] < 40, "nothing was streamed"
    for event in events:
        assert expected["output_ids"][: len(event["output_ids"])] == event["output_ids"]


def test_an_abort_in_mid_stream_frees_everything(drafting: EngineClient) -> None:
    drafting.settle()
    expected = drafting.generate(MIXED[2], 40, ignore_eos=True)["output_ids"]
    body = {
        "input_ids": LONG[0],
        "sampling_params": {"temperature": 0, "max_new_tokens": 300, "ignore_eos": True},
    }
    for read in (1, 2, 7):
        with contextlib.closing(drafting.http.events("/generate", body)) as events:
            for _ in range(read):
                next(events)
    drafting.settle()  # raises while anything still runs
    rid = "to-be-aborted"
    started = drafting.http.events("/generate", {**body, "rid": rid})
    with contextlib.closing(started) as events:
        next(events)
        drafting.http.post("/abort_request", {"rid": rid})
        begun = time.monotonic()
        rest = []
        with contextlib.suppress(ServerError):  # an abort may come as an error
            rest = list(events)
        assert time.monotonic() - begun < 20
        assert all(event["meta_info"]["completion_tokens"] < 300 for event in rest)
    drafting.settle()
    assert drafting.generate(MIXED[2], 40, ignore_eos=True)["output_ids"] == expected


@pytest.mark.parametrize("name", ["small_chain", "small_tree"])
def test_a_small_pool_retracts_and_a_small_chunk_splits(
    name: str, none: EngineClient, only_once: Callable[[str], EngineClient]
) -> None:
    """Requests that need more than the pool: some are thrown out, and all end as without.

    Six long ones need twice of it. A crowd of short ones ended the server: upstream throws requests
    out until one slot a request is free, and the next draft found no room.
    """
    small = only_once(name)
    expected = [none.generate(prompt, 60, ignore_eos=True)["output_ids"] for prompt in LONG]
    retractions = 0
    for _ in range(2):
        # In one request: on a busy machine separate ones arrive too late to compete.
        replies = small.batch(LONG, 60, ignore_eos=True)
        assert [reply["output_ids"] for reply in replies] == expected
        retractions += sum(reply["meta_info"]["total_retractions"] for reply in replies)
        small.settle()
    assert retractions > 0, "the pool was large enough: nothing was tested"
    penalised = {"ignore_eos": True, "frequency_penalty": 0.7, "min_new_tokens": 50}
    want = [none.generate(prompt, 60, **penalised)["output_ids"] for prompt in LONG]
    replies = small.batch(LONG, 60, **penalised)
    assert [reply["output_ids"] for reply in replies] == want
    small.settle()
    expected = [reply["output_ids"] for reply in none.batch(CROWD, 4, ignore_eos=True)]
    replies = small.batch(CROWD, 4, ignore_eos=True)
    assert [reply["output_ids"] for reply in replies] == expected
    assert sum(reply["meta_info"]["total_retractions"] for reply in replies) > 0
    small.settle()
    # One request that grows to the whole pool: its end leaves room for the last cycle.
    whole = pair.token_ids("y" * 360)
    ids = small.generate(whole, 40, ignore_eos=True)["output_ids"]
    assert 0 < len(ids) < 40, "the pool did not end it"
    assert ids == none.generate(whole, 40, ignore_eos=True)["output_ids"][: len(ids)]
    body = {"input_ids": whole + whole[:36], "sampling_params": {"max_new_tokens": 4}}
    status, message = small.refusal(body)
    assert status == 400
    assert "maximum allowed length" in message
    small.settle()


def test_two_data_parallel_ranks(
    none: EngineClient, only_once: Callable[[str], EngineClient]
) -> None:
    expected = [reply["output_ids"] for reply in none.batch(MIXED, 40, ignore_eos=True)]
    two = only_once("two_ranks")
    requests = [{"input_ids": p, "max_new_tokens": 40, "ignore_eos": True} for p in MIXED]
    assert [reply["output_ids"] for reply in two.together(requests)] == expected
    states = two.http.get("/get_server_info")["internal_states"]
    cycles = [state["sgl_entropy_counters"]["cycles"] for state in states]
    assert len(cycles) == 2
    assert min(cycles) > 0, "one rank did all the work"


def test_nothing_is_left_behind(drafting: EngineClient) -> None:
    """After all that this file did: every slot is free and the next request runs."""
    drafting.settle()
    assert drafting.occupied() == (0, 0)
    assert drafting.generate(MIXED[0], 5, ignore_eos=True)["meta_info"]["cached_tokens"] == 0
